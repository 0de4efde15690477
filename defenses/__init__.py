"""Built-in defenses, one file a defense; and those of the literature that are not here, with the reason."""

from __future__ import annotations

LEFT_OUT: dict[str, str] = {
    "AQF (quantising event filter, 2023)": "its quantisation and correlation settings are not recoverable",
    "E-RSCT (training scheme of RSC-SNN, 2024)": "not specified; `rsc` trains plainly through the coding",
    "HIRE-SNN (ICCV 2021)": "period count and noise size not recoverable, no training code released",
    "IBP training (NeurIPS 2022)": "only its certification is here (`certify`), not its 300-epoch training",
    "RandHet-SNN (iScience 2025)": "distribution of the time constants not recoverable",
    "RTE (2025)": "penalty and sampling not recoverable",
    "S-CROWN (NeurIPS 2022)": "S-IBP bounds are sound without its linear relaxations, only looser",
    "STOD (ICLR 2026)": "its published rows contradict each other; the transform is dropped at test time",
    "TMI (CVPR 2026)": "small absolute gains; kernel settings are not in pixel units",
    "Timing codes (2023, 2025)": "an encoding is a property of a victim: see the timing victims",
}
"""Name -> why it is not implemented."""
