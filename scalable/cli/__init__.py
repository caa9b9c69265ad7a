"""`scalable <verb>`: parse, call one public function, show what it gave."""
