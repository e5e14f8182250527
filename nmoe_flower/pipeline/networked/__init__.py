"""The first system, stage by stage: the extractor, the experts, the gates, the evaluation."""
