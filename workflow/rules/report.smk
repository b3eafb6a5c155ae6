# What the report says besides the figures: `snakemake --report report.html`. It makes no file of the graph.
import yaml

if "PARAMS" not in globals():

    include: "common.smk"


report: "../report/workflow.rst"


MEASURED = Path("results/metrics.json")

# The description sees `config` alone. Nothing else reads this key, and the parameters have been checked before.
config["report"] = {
    "datasets": PARAMS.datasets,
    "parameters": yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100),
    "measured": json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {},
}
