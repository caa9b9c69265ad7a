"""Queries from a seed: text built from a small grammar, all of which can be split over leaves."""

from __future__ import annotations

import random
from collections.abc import Callable

VALUES = ("Flux1", "dFlux1", "Mag1", "Mag2", "X", "Flux2")
"""Columns whose variance is well-conditioned: two ways to compute it agree to 1e-12."""
GROUPS = ("band", "observation_id", "Class", "floor(Mag1)", "CASE WHEN Mag1 < 16 THEN 'bright' ELSE 'faint' END", "n_J % 2 + 1")
BANDS = ("Z", "Y", "J", "H", "Ks")
EVERY_ROW = "object_id, observation_id, source_row"
"""What makes the order of detections unique."""

MACROS = """
CREATE MACRO in_cone(ra, dec, a, d, r) AS
  2 * asin(sqrt(pow(sin(radians(dec - d) / 2), 2) + cos(radians(dec)) * cos(radians(d)) * pow(sin(radians(ra - a) / 2), 2)))
  <= radians(r);
CREATE MACRO in_box(ra, dec, a, b, c, d) AS dec BETWEEN c AND d AND ra BETWEEN a AND b;
CREATE MACRO det(a, b, c, d, e, f, g, h, i) AS a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
CREATE MACRO side(ra, dec, a, b, c, d) AS det(
  cos(radians(dec)) * cos(radians(ra)), cos(radians(dec)) * sin(radians(ra)), sin(radians(dec)),
  cos(radians(b)) * cos(radians(a)), cos(radians(b)) * sin(radians(a)), sin(radians(b)),
  cos(radians(d)) * cos(radians(c)), cos(radians(d)) * sin(radians(c)), sin(radians(d))) > 0;
CREATE MACRO in_polygon(ra, dec, a, b, c, d, e, f) AS
  side(ra, dec, a, b, c, d) = side(ra, dec, c, d, e, f) AND side(ra, dec, c, d, e, f) = side(ra, dec, e, f, a, b);
"""
"""What the functions of the sky mean, in plain SQL, for regions away from the poles and right ascension 0."""


class Query(str):
    """A query, and whether it says in which order its rows come."""

    ordered: bool

    def __new__(cls, text: str, ordered: bool) -> Query:
        query = super().__new__(cls, text)
        query.ordered = ordered
        return query


class Grammar:
    """Draws queries; two with one seed draw the same."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kinds: tuple[Callable[[], str], ...] = (
            self.rows, self.totals, self.groups, self.by_observation, self.of_objects, self.colours, self.windows, self.distinct,
            self.chosen, self.observations, self.outer, self.with_query, self.file_view, self.object_rows,
        )  # fmt: skip

    def query(self) -> Query:
        text = self.one(*self.kinds)()
        # An ORDER BY inside parentheses orders no result.
        outermost, depth = "", 0
        for letter in text:
            depth += (letter == "(") - (letter == ")")
            outermost += letter if depth == 0 else ""
        return Query(text, "ORDER BY" in outermost)

    # Words -----------------------------------------------------------------------------------------------------------------

    def one(self, *choices):  # type: ignore[no-untyped-def]
        return self.random.choice(choices)

    def some(self, *choices: str, most: int = 3) -> list[str]:
        return self.random.sample(choices, self.random.randint(1, min(most, len(choices))))

    def number(self, low: float, high: float) -> str:
        return f"{self.random.uniform(low, high):.4f}"

    def value(self, table: str = "") -> str:
        names = [f"{table}{name}" for name in VALUES]
        first, second = self.random.sample(names, 2)
        return self.one(
            first,
            first,
            f"abs({first} - {second})",
            f"{first} / {second}",
            f"-2.5 * log10(abs({first}) + 1)",
            f"sqrt(abs({first}))",
            f"coalesce({first}, 0) + 1",
            f"greatest({first}, 3)",
            f"CASE WHEN {first} > {second} THEN {first} ELSE {second} END",
        )

    def region(self, table: str = "") -> str:
        ra, dec = self.random.uniform(268.5, 269.8), self.random.uniform(-30.3, -29.7)
        place = f"{table}object_ra, {table}object_dec"
        wide, high = self.random.uniform(0.05, 0.6), self.random.uniform(0.05, 0.4)
        return self.one(
            f"in_cone({place}, {ra:.4f}, {dec:.4f}, {wide:.4f})",
            f"in_box({place}, {ra - wide:.4f}, {ra + wide:.4f}, {dec - high:.4f}, {dec + high:.4f})",
            f"in_polygon({place}, {ra:.4f}, {dec:.4f}, {ra + wide:.4f}, {dec:.4f}, {ra:.4f}, {dec + high:.4f})",
        )

    def condition(self, table: str = "", depth: int = 1) -> str:
        simple = self.one(
            f"{table}Flux1 / {table}dFlux1 > {self.number(3, 80)}",
            f"{table}Class = -1",
            f"{table}Mag1 BETWEEN {self.number(12, 15)} AND {self.number(15, 18)}",
            f"{table}band IN ('{self.one(*BANDS)}', '{self.one(*BANDS)}')",
            f"{table}Mag1 IS {self.one('', 'NOT ')}NULL",
            f"NOT ({table}X < {self.number(100, 9000)})",
            f"{table}object_id % {self.random.randint(2, 9)} = {self.random.randint(0, 2)}",
            f"{table}band LIKE '{self.one('%s', 'J%', '_')}'",
            self.region(table),
        )
        if depth and self.random.random() < 0.6:
            return f"({simple} {self.one('AND', 'AND', 'OR')} {self.condition(table, depth - 1)})"
        return simple

    def where(self, table: str = "", chance: float = 0.75) -> str:
        return f" WHERE {self.condition(table)}" if self.random.random() < chance else ""

    def aggregate(self, table: str = "") -> str:
        value = self.value(table)
        found = self.one(
            "count(*)", f"count({value})", f"sum(abs({value}))", f"min({value})", f"max({value})", f"avg({value})",
            f"stddev({value})", f"variance({value})", f"stddev_pop({value})", f"var_pop({value})", f"var_samp({value})",
            f"count(DISTINCT {table}object_id)", f"sum({table}source_row)", f"max({value}) - min({value})",
            f"sqrt(avg(abs({value})))",
        )  # fmt: skip
        plain = found.count("(") > 0 and not found.startswith(("max(", "sqrt("))
        return f"{found} FILTER (WHERE {self.condition(table, 0)})" if plain and self.random.random() < 0.2 else found

    def aggregates(self, table: str = "") -> str:
        return ", ".join(f"{self.aggregate(table)} AS a{n}" for n in range(self.random.randint(1, 4)))

    def limit(self) -> str:
        return self.one("", f" LIMIT {self.random.randint(0, 60)}", f" LIMIT {self.random.randint(1, 40)} OFFSET 7")

    # Queries ---------------------------------------------------------------------------------------------------------------

    def rows(self) -> str:
        values = ", ".join(f"{self.value()} AS v{n}" for n in range(self.random.randint(1, 3)))
        end = self.one("", f" ORDER BY {self.value()} {self.one('ASC', 'DESC')} NULLS LAST, {EVERY_ROW}{self.limit()}")
        return f"SELECT object_id, {values} FROM detections{self.where()}{end}"

    def object_rows(self) -> str:
        columns = ", ".join(self.some("object_ra", "object_dec", "n_J + n_H AS two", "n_Ks / n_J AS ratio"))
        where = self.one("", f" WHERE n_J > {self.random.randint(0, 1)} AND {self.region()}", f" WHERE NOT {self.region()}")
        return f"SELECT object_id, {columns} FROM objects{where} ORDER BY n_Ks DESC, object_id{self.limit()}"

    def totals(self) -> str:
        return f"SELECT {self.aggregates()} FROM detections{self.where()}"

    def groups(self) -> str:
        keys = self.some(*GROUPS[:5], most=2)
        names = [f"{key} AS k{n}" for n, key in enumerate(keys)]
        having = self.one("", "", f" HAVING count(*) > {self.random.randint(1, 80)}")
        end = self.one("", f" ORDER BY {', '.join(f'k{n} NULLS FIRST' for n in range(len(keys)))}{self.limit()}")
        query = f"SELECT {', '.join(names)}, {self.aggregates()} FROM detections{self.where()}"
        return f"{query} GROUP BY {', '.join(keys)}{having}{end}"

    def by_observation(self) -> str:
        key = self.one("o.field", "o.band", "o.path", "o.field, o.band")
        join = self.one(
            "JOIN observations o USING (observation_id)", "LEFT JOIN observations o ON o.observation_id = d.observation_id"
        )
        return f"SELECT {key}, {self.aggregates('d.')} FROM detections d {join}{self.where('d.')} GROUP BY {key}"

    def of_objects(self) -> str:
        inner = f"SELECT object_id, count(*) AS n, {self.aggregates()} FROM detections{self.where()} GROUP BY object_id"
        return self.one(
            f"{inner} HAVING count(*) > {self.random.randint(1, 6)} ORDER BY n DESC, object_id{self.limit()}",
            f"SELECT n, count(*) AS objects, avg(a0) AS m, max(a0) AS x FROM ({inner}) GROUP BY n",
            f"SELECT count(*) AS objects, stddev(n) AS s, sum(a0) AS t FROM ({inner}) WHERE n > 2",
        )

    def colours(self) -> str:
        a, b = self.random.sample(BANDS, 2)
        join = f"detections a {self.one('JOIN', 'LEFT JOIN')} detections b ON a.object_id = b.object_id AND b.band = '{b}'"
        where = f" WHERE a.band = '{a}' AND {self.condition('a.')}"
        return self.one(
            f"SELECT a.object_id, a.Mag1 - b.Mag1 AS colour FROM {join}{where}",
            f"SELECT count(*) AS n, avg(a.Mag1 - b.Mag1) AS m, stddev_pop(a.Mag1 - b.Mag1) AS s FROM {join}{where}",
            f"SELECT round(a.Mag1 - b.Mag1) AS c, count(*) AS n FROM {join}{where} GROUP BY 1 ORDER BY 1{self.limit()}",
        )

    def windows(self) -> str:
        over = f"OVER (PARTITION BY object_id, band ORDER BY mjd, {EVERY_ROW})"
        what = self.one(
            f"row_number() {over}", f"lag(Mag1) {over}", "avg(Flux1) OVER (PARTITION BY object_id)", f"sum(Mag2) {over}"
        )
        inner = f"SELECT *, {what} AS w FROM detections{self.where()}"
        return self.one(
            f"SELECT object_id, band, w FROM ({inner}) WHERE w > {self.number(0, 3)}",
            f"SELECT band, count(w) AS n, avg(w) AS m, max(w) AS x FROM ({inner}) GROUP BY band",
            f"SELECT object_id, mjd, {what} AS w FROM detections{self.where()} ORDER BY {EVERY_ROW}{self.limit()}",
        )

    def distinct(self) -> str:
        keys = self.some("band", "observation_id", "Class", "floor(mjd)", "object_id % 7", most=2)
        names = ", ".join(f"{key} AS k{n}" for n, key in enumerate(keys))
        end = self.one("", f" ORDER BY {', '.join(f'k{n}' for n in range(len(keys)))}{self.limit()}")
        return f"SELECT DISTINCT {names} FROM detections{self.where()}{end}"

    def chosen(self) -> str:
        inner = f"SELECT object_id FROM detections{self.where()}"
        outer = self.one(
            "SELECT count(*) AS n, sum(n_J) AS s FROM objects p", f"SELECT {self.aggregates('p.')} FROM detections p"
        )
        return f"{outer} WHERE p.object_id {self.one('IN', 'NOT IN')} ({inner})"

    def observations(self) -> str:
        return self.one(
            "SELECT field, count(*) AS n, stddev(mjd) AS s, median(mjd) AS m FROM observations GROUP BY field",
            f"SELECT path, rank() OVER (ORDER BY mjd, path) AS r FROM observations ORDER BY r{self.limit()}",
            "SELECT count(DISTINCT band) AS n FROM observations WHERE mjd > (SELECT avg(mjd) FROM observations)",
            f"SELECT d.object_id, o.path FROM detections d JOIN observations o ON o.observation_id = d.observation_id "
            f"WHERE d.observation_id IN (SELECT observation_id FROM observations WHERE band = '{self.one(*BANDS)}') "
            f"AND {self.condition('d.')}",
        )

    def outer(self) -> str:
        join = f"objects p LEFT JOIN detections d ON p.object_id = d.object_id AND {self.condition('d.')}"
        return self.one(
            f"SELECT p.object_id, d.mjd, d.Mag1 FROM {join}",
            f"SELECT p.n_J, count(*) AS n, count(d.Mag1) AS m, avg(d.Flux1) AS f FROM {join} GROUP BY p.n_J",
            f"SELECT count(*) AS n, count(DISTINCT d.object_id) AS k FROM {join} WHERE {self.region('p.')}",
        )

    def with_query(self) -> str:
        key = self.one(*GROUPS)
        return (
            f"WITH bright AS (SELECT * FROM detections{self.where()}), "
            f"joined AS (SELECT b.*, p.n_J FROM bright b JOIN objects p ON p.object_id = b.object_id{self.where('p.', 0) or ''}) "
            f"SELECT {key} AS k, {self.aggregates()} FROM joined{self.where(chance=0.4)} GROUP BY {key}"
        )

    def file_view(self) -> str:
        where = self.where()
        return self.one(
            f"SELECT {self.aggregates()} FROM Field_1_J{where}",
            f"SELECT object_id, Mag1 FROM Field_1_J{where} ORDER BY Mag1 NULLS FIRST, source_row{self.limit()}",
            "SELECT count(*) AS n, avg(j.Mag1 - h.Mag1) AS c FROM Field_1_J j JOIN Field_1_H h ON j.object_id = h.object_id",
        )
