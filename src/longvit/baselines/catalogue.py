"""List of systems: a new one is its file and its line here. Light to import, since the command line reads it."""

# Name in settings and tables (that of the published row, where there is one) -> module:class.
SYSTEMS = {
    "mean_pooling": "longvit.baselines.mil:MeanPooling",
    "mil": "longvit.baselines.mil:MaxPoolingMil",
    "deep_sets": "longvit.baselines.mil:DeepSets",
    "attention_mil": "longvit.baselines.mil:AttentionMil",
    "clam_sb": "longvit.baselines.clam:ClamSB",
    "ds_mil": "longvit.baselines.dsmil:DualStreamMil",
    "deep_attn_misl": "longvit.baselines.deepattnmisl:DeepAttnMisl",
    "gcn_mil": "longvit.baselines.gcn_mil:GcnMil",
    "transmil": "longvit.baselines.transmil:TransMil",
    "hipt": "longvit.baselines.hipt:Hipt",
    "mcat": "longvit.baselines.mcat:Mcat",
    "snn": "longvit.baselines.snn:Snn",
    "longnet": "longvit.baselines.longnet:LongNet",
    "feather": "longvit.baselines.feather:Feather",
    "patch_sampling": "longvit.baselines.patch_sampling:PatchSampling",
}
