"""Binary tables compressed in tiles: what fpack wrote is what went into it, and damage is named."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scalable.errors import InputError
from scalable.io.fits_table import FitsTable
from scalable.io.reader import Source
from scalable.testing import check_reader

READER = FitsTable()

PACKED = """
c-rlm30RWp`o=LewOq><&7)r?sg=np+UCM0W=4v+R7X)zDOW(vEv#&+X;D$5eNj`}rq$Ld43}J|EXVdTkL6@qN#%-gP`+|(^vrbn{>wF&&jq~Pd>23NcYE
Fk@SrTAx)K3kAuvqP0BayHB0MO99mWB;5deuo^8h$pdN_m5W&p#66NN^lc#pudmGkIqHa!kt(7AMg8yCq0{v_NSy(u2R2t0(G7akoJz+?jvL7&O2FlIQ16
%o!EmPhoa5#0zQ_V=3u?@Yum_V8S?5HKgB>0}p#j~y97Cz9o@x%{#<;7srY0z;UAYdFziKy;+M<4gvCLZED{kVq>Ol7>LfL*nLP?LZ#Ek>)7J$^DrRc60E
lwPNI=!&%(FMjhzvXpF{ajK*k;#%PSjXh0VI<)jB?shhlBbE3G>9GzT==D)ja4Fs^l>FhXwOAiQT0?f5sMR7VJ?|-#^MtytzJitQ^%R}O9<h)R3crZ7lpZ
A3XApgW4Y6O4i5qPMPc~tyTPdD0dJTwM}9Ma!lc0_a}5J_j#!<bwqd-(p6N96VQ_>Vl!pUel1L?OBoJci{Vhw>ClCWyrhWsFRv(R`@Hf%!0JfnUkYzh^zu
NK4(9D0s+aP8KMPjpg_8`u(94{s5@_p}zRDwYB_Co|~tu>#*z33XMSgm;FT#_*)HGf6-t1YlHsY{`ULB4De!Ep$usJVZQi7+Sx*|Ua$kaKzR=0LgEiQIDV
D@1mkBjzzcwEer>+^!y%!VU)%sMD3l%yjX&IAKCpqppX~sT3EBAB4(0<$_J`d7j{%uKyFq`r@Ac>DMxlZJn86VE8#q4@{X7n2{Z;S=@&OWx^Fw|x%6T!+`
9ps8hen{j&mYN`MsX#&x(#=pV{E^j=Q~hB{)gXVxgjhLAivRpz=*I&Hj~3)GQd({cwWCf;z<5}UvID@V&&v;fJqMw0l2K;fxch?I2;d){r39L7c2mWt0&Q
jZ?FG+!2<9v{9gQ*>ObGXdT22e>(6(vexX3dQ`848knu1O^RN)}6z8QAWIV<B<_Z~4aUKyN<0<kz0WzK<KjR!B;|=6fv<nnGygcD6_8ZxkLiIxp<yn8pdi
{BT9vU3MW^qHpfS?Gr{7PtaSom-}6vRBmesibbiGD~Zco>LzScrKxgX0GY4+k;N7UKD}gP5n-Z_xEuvELw>-{1Xz=|c@#>f;u)<n#S||Gz}qV(icutgW5R
=>M0aF&h6P0aL^W*wFC&>UFH5QE~=#8K{#$Jyy|-!GoF%Y6_?gL7fI_4^STmwHK)SK+RP&$~5qE#)G;XyxyT`RPKS=ThXXifZ86kHGQbxvHnB-s?8kgS8d
KvziJ#%yMcNKsKIeidkpGuMWa3g^g9>S>EQLNibg{SYLcQE7YAwts6Sud3F>!4{f_@U-Z)Ti1hoOE!Owv?f%^0K*eV*$NuZ{KdI_jsfchtsZR(1VRSxt&j
P+*(1kss+%?(YBjjvw3{MQs+{Rxxx^d?Odq-FAVrDtVicu{HY%a?h2+`n_DE?{j`)cwYTd~aNmMwvhmWBuA{8wZ!hh);^UefNe~MF(&B3g^{1_swbNk0^d
nTtb+AaaLBLV~fyw&Z&<c(se=fV}d8m6FK9a<~}polm5o6BVLy2y5dOlHS=6w@xo`%GD0d#&(yu?)2~XXF$~^T(rI??l(xj?@e7tfn&on(*x=`VBH0`^4_
(_Dv$5q^V)}uo>e-0~D*Bp6V<wC<oH^$~WP@m<PD)p+*%(-ABmG3O5)3xj<=#%2y|Qw#y>3O9iA&?e%K?|13SK?zEV-BW!S1N<GosPmv#aKM_kCO;vdoAx
;@3nJ>#Tk}XJSFT7%R<fUm3G?Cd}<YA+~>!$z;+xjNTH@hhg{2GiI%<IG<laC?%GWZjnXP5d|wz)3nni8}O#-6=vsH3$i_CWmUn?{gy0$<DLH5Hrm2?`+s
#m(}XvV{EoXr|GxPBs45{~w`DN6OGM_CXUY~!*n*#5jGax5-Yaa<nCr3jfT&p$xjf-;X^RfVXI)Nt+XURo^?6k>q#e)tH^m@kd=zK=bX6soPy580p;rRWo
L5s;Gb+;4LSPWKm^rrZlN}vy7EK3^96k~#+O9g=rqwpGQM5zNdXdE6|3!nIZhG1>YV92);_MmvVI&MzdJSL}eT5{eYOBDC*N?{;FNkY@Rh)1Ae4V7{L+bk
Ut$Q|Q?KrS8W81#Xf>b{T2P)Os+1r~ypwV1iSMFc08{+S<DWy&a9S6e(j6n`vVDRdS9m+6$(H%?6qC<0{YlZr%y^W9G{Og@pX|-r)-+A+dv$$Twj$>uCz~
jhYcdvHE<{5g(Wt{~H`Qx(f0s1*pOD#wmF4PSZG7qc3Ega=fwO@X@<s~Ye+I~z#RZ{Hcm9S*pF-lIMGJ$CT@8|_~Y^QF9s%$pxhMuG=BQ2tRa{<-seX4$u
eOK75lbX_TK7NL`dfwM&hxHv)Z<;TCQJ1jA{<`IKC%>loxm-`lUc&D2vaIY(WWHF&KWQgr`TCNd|Kh#4fh_6r$T1F)mhv&A=dJH@R<orK0_@ayZ;f&;CQ9
F+7K(H_bMGqY35CgNhXs<&s|k&p#dyj;#tAEOa`#&CqR52Zs<M|M?i>UAUB9?YWl8<oEYq)b^HWZ!*}uwi7aH5|+pyR<Ny@%Hm%2&vw$V??r2BoQNEF<z%
(#^rA`2+nUQ#cubTpiPsqa7wmb0<fEjNs8-68tzx!dW6At}x3PJQjK_izXd3T1=DqA#7faPH#SvxVnlBf0FDsAvwS^ZiG0NBgG_I_m10<FqxjRxCP#s(4K
J;nUMk%CpUv!+UpEp1UrLiu^UVMc)q{*P(;cId#xIqb2yKqVD$k7g&!sci)D+-GXFXE4%@B61;xY(xY1=6zuX+E08X@bomLn{mrqsQe%`!YE5Nq`r3pL-;
3AFt8Sx1O$y(voRhIAt+H@YQ}Y6WAgK(uI%{XMdib^=@0L&Nj{n*>xrS3ZAtB?zeU)|l+KPa~{tdcm)H?|J%^#Gf7$*WH!RC4}SiwTiwy(0<?V_SCFtKSc
oSgTMi4bXr_*lO@ohX67O{q1qX)n8fq!)W?*L%+eJw^#nB5h817oSK=GTgN-uF7QHk9I+b@vxnX1<Mtur&=9BSz~);FlKK}-iNK#EwKv@-p+4V!RryC%oa
~1v=clg5u+F@rcjn<!VO$Jvfw_xUc2CXR<97iAI8rLszv-wQ{4MW^ZZhd{qkYz!hp>uYdfYnFn>H<*KLds*>Uc^WIAb0THzy^86`a9^3yTqu2H+LDN}Fk{
HrOB!!^^gy}Y(dC52F8mdj|;&!p91FohSQxt~5R*^Oa7+U~=7W#xT=@$g5_HT7W+E-)YOT$Rv)yfYOBo2(Qtc4&6vL;_mQ&dx3_6w2bN^76{cii)b)u=S?
87E0?;x&^THvvdoT*3Z*LU=BNO{y|x@3sGD?23CM%ZvHx*oz)V-bX6Q(#stcq-hU~Drv+!!yjs-T6MLw)HU9A}?cPT$!H!akDNGBzK_&GEROS&)`BM#eCe
`WlgS(66(a#S)mF~OFWgczKk-%udH|Bzg43P*^Z_<{%HCk4C@X(XnGcGRTU9BSXdA!*7sgaJdc$d_l3B1JIG<A|}oivR`;Q=R|sc>0ZYwrAshstmA&5fxt
GqkhFQpi7J#+}5g$Z^MS(`o9Y%-nQZypx-i{id6m?W)9+oKl^+yF}{!Bx5&2X0?wZMhgWDxTYbms&8p#Vki%3>cYVB_Lv_f8u?W}pKwx}_bSWM_g3(SRgB
Zcx4JJI`slSu8g5zvy;AnoT~7e}14MYGx?gk5>sY7Rk|}n2iJH7mFZBJ<mVJrcQ@yKY{%c5<=;sfD^is7<I_A(AAC~o{Rv2ulmoZI9(Kdb$GxV~xgdMS&t
n+bw*?SDHsHye3?X}S;lh(s_6tHC%C+Bbu=(L@1eopr4<<7HZJ(3Q|bw(*<0*OexRZ>=JZZ;F1pPQR^G?)>@Y;Jn>^5qo$$&&<`Ju58ONjH)hZ5MjB!xqE
eTF0jTwC`D(0pn=(hfmMWenK0b-_Ysia%u9~tLLpB?r*+X|C4Rt&iT_GXMgkwKN&Xeo|MOAhNbnK58rsgQ%pv6+mI!znxsM5-3Lg8_f)g5HTo>?NjgaHEx
-#tpUHI51}(L@3%Zgkg3Z-o)ixO~b%(5~K#8nBTg}+w-=)UP9(QI-y-@SniSV;q@>_4-`Yopiy@%NHPnEW1XutAR@iKg!-gN_*+i~7Q!od4Y>s*yK(0AwA
@tJ$_;<8zL^RAo=+n3iZirSxVcQ^V#eq3YR!Tc-Yq(iyF67{;8Z2$i^>F5t>C86l}OFtCnd7$>w!(uzNLs8RGme<&e`L}JeV`|%R8-i-J7Aw_taqUh2kVb
B%!shR+J8Jq>7Aeu$zhB#E9=o;V7`l1x%B$?QvQzUrjTgj=TT4&i-YrV(5x3nsZ7-WT)t~?dE0j#N-tu+kP{AZSOjN&+>@ZE8o9r+}{bRC&iMpodR3k&}h
SG7Gc==bA?5E7-x?g3An_9^TO?jrMG}d)q_1aGq)c0`n()0Hhv~<K*uc<dF`^`joB4=;ale|5?HXf|JyVYYS(Ws89;6wI=tO5dj*0QZGv~2$JMGe!83g0S
<9RC!U3R_v&SG>unTFhf>lSvEhpZro=zcjX!loC_i+*j}U4~c{qBO>$dg-?5HUlYdnmNzae+9->skgIfWzY8z#E!Q)7ml+~8wd(711awI<;kw-MTh+u$?v
7Nx3^<W%ywyvrZ|amRkWGJ(i`<$oo+-wk*)N-+noHQ)DYg?48ji@!P)AIEcDLs<_=ruo?pb{^Xfz?ecfveXzite3Myr>7MmitAX><3&8nYB1VW!1|C90>p
$ym72O8d+k{N<bOcT*3*FZ@$jbi5z~W-Y6{V~GmXkibS`G)7}IMq@Poj`45cKDgo
"""  # what `fpack -table` of CFITSIO 4.2 makes of the columns below, in tiles of 48 rows (FZTILELN)


def columns() -> dict[str, np.ndarray]:
    n = np.arange(130)
    return {
        "id": n * 10**12 + 7,
        "i": (n * 7919 % 601 - 300).astype("i2"),
        "j": (n**2 - 300).astype("i4"),
        "wild": (n * 2654435761 % 2**32 - 2**31).astype("i4"),
        "const": np.full(130, 7, "i4"),
        "b": (n * 37 % 256).astype("u1"),
        "flag": n % 3 == 0,
        "e": (n * 0.25).astype("f4"),
        "d": n * 0.125,
        "s": np.array([f"s{k}" for k in n]),
        "v": (n[:, None] * [1, 20, -300]).astype("i4"),
    }


def put(path: Path, *changes: tuple[str, str, str]) -> Source:
    """Write the file, with the values of some of its cards changed."""
    raw = zlib.decompress(base64.b85decode("".join(PACKED.split())))
    for key, old, new in changes:
        at = raw.index(f"{key:8s}= ".encode(), 2880) + 10
        assert raw[at : at + 20].strip() == old.encode()
        raw = raw[:at] + new.rjust(20).encode() + raw[at + 20 :]
    path.write_bytes(raw)
    return Source(str(path))


def test_what_fpack_wrote_is_what_went_into_it(tmp_path: Path) -> None:
    found = check_reader(READER, put(tmp_path / "a.fits.fz"))
    assert found.column_names == list(columns())
    for name, values in columns().items():
        expected = [None if name == "i" and value == -300 else value for value in values.tolist()]
        assert found[name].to_pylist() == expected, name
    assert found["i"].null_count == 1
    assert found.schema.field("d").metadata == {b"unit": b"deg", b"source_unit": b"deg"}
    types = [pa.int32(), pa.uint8(), pa.float32(), pa.list_(pa.int32(), 3)]
    assert [found.schema.field(name).type for name in ("j", "b", "e", "v")] == types


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ZCTYP3", "'RICE_1  '", "'PLIO_1  '"), r"a\.fits\.fz: HDU 1: ZCTYP3 is 'PLIO_1' on J; GZIP_1 on L X B"),
        (("ZFORM9", "'D       '", "'C       '"), "ZCTYP9 is 'GZIP_2' on C; .* write the table without compression"),
        (("ZFORM1", "'K       '", "'PJ(7)   '"), r"ZFORM1 is 'PJ\(7\)': arrays of any length in a compressed table"),
        (("ZFORM10", "'7A      '", "'8A      '"), r"NAXIS1 is \d+, its 11 columns take \d+ bytes"),
        (("ZNAXIS2", "130", "40000000"), "NAXIS2 is 3, which is not ZNAXIS2 40000000 in tiles of ZTILELEN 48"),
        (("ZTILELEN", "48", "0"), "NAXIS2 is 3, which is not ZNAXIS2 130 in tiles of"),
    ],
)
def test_what_is_not_read_is_refused_with_its_keyword(tmp_path: Path, change: tuple[str, str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        READER.describe(put(tmp_path / "a.fits.fz", change))


def test_a_header_that_promises_too_much_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    changes = ("ZNAXIS2", "130", "3000000"), ("ZTILELEN", "48", "1000000")
    with pytest.raises(InputError, match=r"a\.fits\.fz: HDU 1: ZNAXIS2 is 3000000: \d+ bytes swell to \d+, .* bomb"):
        READER.describe(put(tmp_path / "a.fits.fz", *changes))


def test_a_damaged_tile_is_named_with_its_column(tmp_path: Path) -> None:
    path = Path(put(tmp_path / "a.fits.fz").path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\x1f\x8b") + 12  # of the first column, whose tile comes first
    raw[at : at + 4] = bytes(4)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.fits\.fz: HDU 1: tile 0, column 'id': GZIP_2: .*: corrupt; fetch the file again"):
        list(READER.scan(Source(str(path))))
