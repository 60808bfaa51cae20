"""Which files: package, path within it, the door that it is brought to, and what is declared of it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.public_files.packages import Package, installed

CFGRIB = Package("cfgrib", "0.9.15.1", "d959d8b97e55a63646fa86686b297905ff7f2918a91e3a11d6292dab09598e4d")
ECCODES = Package("eccodes", "2.50.0", "bbc50d49d1b5a5d754ba1fb7cc49d6cb6bbcb5b0cfc0780ea579d3279a6ce831")
SKL2ONNX = Package("skl2onnx", "1.20.0", "c74ea827d92ba186fe659695e8fc989cd97bfc320edce3d32b9936a5878da10a")
INTAKE = Package("intake-parquet", "0.3.0", "57e43795f53d5e44d375683f13532bae248005ff428d177613bc7607ce4a0f89")
PYARROW, XARRAY, ALTAIR, ONNX, RUNTIME = map(installed, ("pyarrow", "xarray", "altair", "onnx", "onnxruntime"))


@dataclass(frozen=True)
class Brought:
    """A file of a package.

    Attributes:
        door: `grib`, `parquet` or `onnx`.
        declared: the variable of GRIB, or the names of a model's columns.
    """

    package: Package
    member: str
    door: str
    declared: str = ""

    @property
    def given(self) -> str:
        """As the table's first column names it."""
        what = f", {self.declared}" if self.door == "grib" else ""
        return f"{self.package}: `{self.member}`{what}"


def _samples(package: Package, **variables: str) -> tuple[Brought, ...]:
    return tuple(
        Brought(package, f"tests/sample-data/{name}", "grib", variable) for name, variable in variables.items()
    )


GRIB = {
    "alternate-scanning": "t2m", "cams-egg4-monthly": "t2m", "cfrzr_and_cprat": "cpr", "cfrzr_and_cprat_0s": "cpr",
    "ds.waveh.5": "shww", "era5-levels-corrupted": "t", "era5-levels-members": "t",
    "era5-single-level-scalar-time": "t2m", "fields_with_missing_values": "t2m", "forecast_monthly_ukmo": "t2m",
    "hpa_and_pa": "t", "lambert_grid": "nlwrs", "multi_param_on_multi_dims": "z", "ncep-seasonal-monthly": "t2m",
    "reduced_gg": "u10", "regular_gg_ml": "t", "regular_gg_ml_g2": "t", "regular_gg_pl": "u10",
    "regular_gg_sfc": "u10", "regular_gg_wrong_increment": "u10", "regular_ll_msl": "prmsl", "regular_ll_sfc": "skt",
    "regular_ll_wrong_increment": "t2m", "scanning_mode_64": "skt", "single_gridpoint": "t2m",
    "soil-surface-level-mix": "t2m", "spherical_harmonics": "z", "step_60m": "t2m", "t_analysis_and_fc_0": "t",
    "t_on_different_level_types": "t", "tp_on_different_grid_resolutions": "tp", "uv_on_different_levels": "u",
}  # fmt: skip
"""Files of cfgrib, each with the variable that is declared."""
SPARK = "part-r-00000-4805f816-a859-4b75-8659-285a6617386f.gz.parquet"
FILES = (
    *_samples(CFGRIB, **{f"{name}.grib": variable for name, variable in GRIB.items()}),
    Brought(CFGRIB, "nam.t00z.awp21100.tm00.grib2", "grib", "prmsl"),
    *_samples(ECCODES, **{"tiggelam_cnmc_sfc.grib2": "t2m"}),
    Brought(XARRAY, "xarray/tests/data/example.grib", "grib", "t"),
    *(
        Brought(PYARROW, f"pyarrow/tests/data/parquet/v0.7.1{name}.parquet", "parquet")
        for name in ("", ".all-named-index", ".some-named-index", ".column-metadata-handling")
    ),
    Brought(ALTAIR, "altair/datasets/_metadata/metadata.parquet", "parquet"),
    *(Brought(INTAKE, f"examples/test.parq/part.{part}.parquet", "parquet") for part in (0, 1)),
    *(
        Brought(INTAKE, f"tests/split/cat={cat}/catnum={number}/{SPARK}", "parquet")
        for cat in ("fred", "freda")
        for number in (1, 2, 3)
    ),
    *(Brought(SKL2ONNX, f"tests/datasets/treecl{n}.onnx", "onnx", "a,b,c,d") for n in ("", "2", "3")),
    *(
        Brought(RUNTIME, f"onnxruntime/datasets/{n}.onnx", "onnx", c)
        for n, c in (("logreg_iris", "a,b"), ("mul_1", "a,b"))
    ),
    Brought(ONNX, "onnx/backend/test/data/pytorch-converted/test_Linear/model.onnx", "onnx", "a,b,c,d,e,f,g,h,i,j"),
)
