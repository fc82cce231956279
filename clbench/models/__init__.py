"""Networks: a backbone that makes features, and one linear head whose use the scenario decides."""
