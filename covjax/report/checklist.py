"""Two reporting checklists, and where a run's page or the project answers them.

The topics are in our words and only point at the items; whoever reports a study reads
the originals: CLAIM, 2024 update (Tejani et al., Radiology: Artificial Intelligence 6,
2024) and TRIPOD+AI (Collins et al., BMJ 385, 2024).
"""

import dataclasses
from collections.abc import Collection

YES, PARTLY, NO = "answered", "partly", "NOT answered"


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Attributes:
      number: as the checklist counts.
      topic: what is asked.
      state: `YES`, `PARTLY` or `NO`.
      where: where the answer stands, or what is missing.
      section: anchor of the page's section that answers it; "" if another file does.
    """

    number: str
    topic: str
    state: str
    where: str
    section: str = ""

    def on(self, anchors: Collection[str]) -> "Item":
        """Returns the item as a page with these sections answers it."""
        if not self.section or self.section in anchors:
            return self
        where = "this run's folder holds no file that answers it"
        return dataclasses.replace(self, state=NO, where=where, section="")


_NO_PATIENTS = "the data set names no patients: neither age, sex nor origin is known"
_NO_STUDY = "a piece of software and its runs, not a registered study"
_SOURCE = "docs/data.md, after the makers of the data set; no dates, places or criteria"
_SETTINGS = "every setting of the run"

CLAIM = (
    Item("1", "title or abstract names the AI method", PARTLY, "the title names the"
         " task; the section, the U-Net", "run"),
    Item("2", "structured summary", PARTLY, "the headline; no abstract", "headline"),
    Item("3", "background, intended use and role", PARTLY, "not for clinical use; no"
         " background is given", "limits"),
    Item("4", "aims and hypotheses", PARTLY, "README.md: to reproduce a study; no"
         " hypothesis was set down"),
    Item("5", "prospective or retrospective", YES, "retrospective: images that"
         " others had published (docs/data.md)"),
    Item("6", "goal of the study", PARTLY, "model building, on one data set:"
         " README.md"),
    Item("7", "sources of the data", PARTLY, _SOURCE),
    Item("8", "criteria to include and exclude", NO, "not known of the data set"),
    Item("9", "preprocessing", YES, "resize, region of interest, augmentation:"
         f" {_SETTINGS}", "settings"),
    Item("10", "parts of the data that were picked or cut out", YES, "images of the"
         " published split (data.train_share of Train); of each, what data.roi and"
         f" data.roi_as show: {_SETTINGS}", "settings"),
    Item("11", "de-identification", NO, "done by the makers, not described"),
    Item("12", "missing data", YES, "files that cannot be read, masks without images",
         "audit"),
    Item("13", "how the images were taken", NO, "devices and views are not known"),
    Item("14", "how the reference was made", PARTLY, "partly by machine: docs/data.md"),
    Item("15", "why this reference", PARTLY, "it is the only one published with the"
         " images; no other was weighed"),
    Item("16", "who drew the reference", NO, "not known image by image"),
    Item("17", "how Test was annotated", NO, "like the rest; no reader drew it anew"),
    Item("18", "agreement between and within readers", PARTLY, "only of two readers"
         " with the masks, as published, on 48 images", "limits"),
    Item("19", "how the partitions were made", PARTLY, "taken over as published;"
         " docs/data.md"),
    Item("20", "level at which they are disjoint", PARTLY, "images, with the twins that"
         " were found; patients are unknown", "audit"),
    Item("21", "intended size of the test set", NO, "as published; no calculation was"
         " made"),
    Item("22", "the model in detail", YES, "covjax/models/unet.py and the settings",
         "settings"),
    Item("23", "software and versions", YES, "versions and commit", "run"),
    Item("24", "initial parameters", PARTLY, "random by the seed, or another run's"
         " (field init_from); of which distribution, covjax/models/unet.py says",
         "settings"),
    Item("25", "training in detail", YES, _SETTINGS, "settings"),
    Item("26", "how the final model was chosen", YES, "the epoch with the best Dice"
         " (all) on Val: README.md"),
    Item("27", "ensembles", YES, "none: one network", "settings"),
    Item("28", "measures and why these", YES, "definitions; docs/metrics.md says why",
         "families"),
    Item("29", "uncertainty and significance", PARTLY, "intervals over images; one"
         " seed, and no test against another model", "families"),
    Item("30", "robustness", PARTLY, "other regions of interest; no noise, devices or"
         " hospitals", "regions"),
    Item("31", "explanation of outputs", PARTLY, "outlines can be seen, and what the"
         " outside of the lungs gives away", "probe"),
    Item("32", "evaluation on internal data", YES, "Test of the same data set",
         "headline"),
    Item("33", "evaluation on external data", NO, "no other hospital's images"),
    Item("34", "registration as a trial", NO, "not a trial"),
    Item("35", "numbers included and excluded", PARTLY, "images by split and class; no"
         " flow of patients", "audit"),
    Item("36", "who the patients are, by partition", NO, _NO_PATIENTS),
    Item("37", "performance with uncertainty", PARTLY, "figures with intervals; none by"
         " age, sex or origin", "headline"),
    Item("38", "diagnostic accuracy and its uncertainty", PARTLY, "of images with"
         " infection against the masks, not a diagnosis", "detection"),
    Item("39", "analysis of failures", PARTLY, "counts by class and the worst images;"
         " no reader looked for causes", "classes"),
    Item("40", "limitations", YES, "", "limits"),
    Item("41", "what follows for practice", PARTLY, "nothing: not a medical device",
         "limits"),
    Item("42", "protocol or further detail", PARTLY, "no protocol; the code, its docs"
         " and config.json"),
    Item("43", "availability of software, model, data", PARTLY, "code under Apache-2.0,"
         " data by docs/data.md; weights: a run's are yours to publish, covjax's own"
         " are"
         " in covjax/pretrained under CC BY-SA 4.0"),
    Item("44", "funding, support, role of funders", NO, "not stated"),
)  # fmt: skip

TRIPOD_AI = (
    Item("1", "title", PARTLY, "names task and run; not the population", "run"),
    Item("2", "abstract", PARTLY, "the headline; no abstract", "headline"),
    Item("3a", "context in health care, rationale", NO, "no clinical background is"
         " given"),
    Item("3b", "target population, purpose, users", PARTLY, "none: not for clinical"
         " use", "limits"),
    Item("3c", "known inequalities in health", NO, _NO_PATIENTS),
    Item("4", "objectives", PARTLY, "README.md: development, with internal"
         " evaluation"),
    Item("5a", "sources of the data, why these", PARTLY, _SOURCE),
    Item("5b", "dates of the data", NO, "not known of the data set"),
    Item("6a", "centres and setting", NO, "several public sources, mixed; not told"
         " apart"),
    Item("6b", "eligibility", NO, "not known of the data set"),
    Item("6c", "treatments", NO, "not known of the data set"),
    Item("7", "preparation and quality of data", PARTLY, "the audit of files, masks and"
         " twins; not by group of patients", "audit"),
    Item("8a", "outcome and how it is assessed", PARTLY, "masks, partly made by"
         " machine: docs/data.md"),
    Item("8b", "assessors of the outcome", NO, "not known image by image"),
    Item("8c", "blinding of the assessment", NO, "not known"),
    Item("9a", "choice of predictors", YES, "the pixels of the image, as data.roi and"
         " data.roi_as show them", "settings"),
    Item("9b", "definition of predictors", YES, "8-bit grey images, resized:"
         f" {_SETTINGS}", "settings"),
    Item("9c", "assessors of predictors", YES, "none: no reader comes between"),
    Item("10", "sample size", PARTLY, "the published split; its intervals show what it"
         " can tell", "headline"),
    Item("11", "missing data", YES, "files that cannot be used", "audit"),
    Item("12a", "how the data were used", YES, "Train teaches, Val chooses, Test is"
         " scored last", "splits"),
    Item("12b", "handling of predictors", YES, f"augmentation and scale: {_SETTINGS}",
         "settings"),
    Item("12c", "kind of model, its building", YES, _SETTINGS, "settings"),
    Item("12d", "differences between clusters", NO, "hospitals are not told apart"),
    Item("12e", "measures of performance", YES, "overlap, surfaces, detection,"
         " calibration: docs/metrics.md", "families"),
    Item("12f", "updating of the model", NO, "none was made"),
    Item("12g", "how predictions are computed", YES, "code and operating point",
         "families"),
    Item("13", "methods against imbalance of classes", PARTLY, "scores by class; what"
         " the loss does about it stands in the settings", "classes"),
    Item("14", "what was done for fairness", NO, _NO_PATIENTS),
    Item("15", "output and thresholds", YES, "a mask, and where its threshold was"
         " chosen", "families"),
    Item("16", "how training and evaluation data differ", PARTLY, "the same data set,"
         " split as published", "splits"),
    Item("17", "ethics approval, consent", NO, "public data; the approvals of its"
         " sources are not known"),
    Item("18a", "funding, role of funders", NO, "not stated"),
    Item("18b", "conflicts of interest", NO, "not stated"),
    Item("18c", "protocol", YES, "none was written"),
    Item("18d", "registration", YES, f"not registered: {_NO_STUDY}"),
    Item("18e", "availability of data", YES, "public, by its own licence:"
         " docs/data.md"),
    Item("18f", "availability of code", YES, "Apache-2.0; command and commit", "run"),
    Item("19", "patients and the public", YES, "not involved"),
    Item("20a", "flow of participants", PARTLY, "images by split and class; no"
         " patients",
         "audit"),
    Item("20b", "characteristics of participants", NO, _NO_PATIENTS),
    Item("20c", "distributions, evaluation against development", PARTLY, "classes by"
         " split, and twins", "audit"),
    Item("21", "participants and events in each analysis", YES, "n of every table; the"
         " infected are the COVID-19 images of docs/data.md", "splits"),
    Item("22", "the model in full", PARTLY, "code and settings repeat the training;"
         " this run's weights are published only if you do", "settings"),
    Item("23a", "performance with intervals", PARTLY, "overall and by class; not by"
         " group of patients", "classes"),
    Item("23b", "heterogeneity between clusters", NO, "hospitals are not told apart"),
    Item("24", "results of updating", NO, "none was made"),
    Item("25", "interpretation", PARTLY, "beside the study's figures; not discussed"
         " further", "headline"),
    Item("26", "limitations", YES, "", "limits"),
    Item("27a", "poor or missing input", PARTLY, "unreadable files stop a run; the"
         " quality of an image is not judged"),
    Item("27b", "interaction and expertise of users", NO, "no use in a clinic is"
         " meant"),
    Item("27c", "next steps", NO, "not stated here"),
)  # fmt: skip
