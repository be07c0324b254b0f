"""The page that `ft report` writes: what is in it, apart from how it is drawn.

content.py      what the page shows, as plain values
runs.py         read from a run's folder
evaluations.py  read from what `ft evaluate` has left
validation.py   found in the embeddings of the validation split
pictures.py     photographs as data URIs

compared.py     evaluations side by side
panels.py       how training went
charts.py       inline SVG, from the parts in drawing.py
page.py         all of it put into page.html.j2 with style.css
"""
