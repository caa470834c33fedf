"""Per-sample quality records: the only thing that statistics and the gate look at."""

from tasks.store.record import Record


class Sample(Record):
    """One model's outcome on one item of one metric.

    Accuracy-like metrics: `value` 0 or 1, `weight` 1. Perplexity: `value` the negative log-likelihood in nats, `weight` the
    number of tokens. KL: `value` the summed divergence from the reference in nats, `weight` the tokens. Flips: `value` the
    number of positions whose most probable token changed, `weight` the positions. Metrics are ratios sum(value)/sum(weight).

    Attributes:
        task: name of the task, or of the text.
        metric: "acc", "acc_norm", "perplexity", "kl", "flips", ...
        item: doc_id, as text; unique within (task, metric).
        item_hash: digest of the item's content: samples of two models are joined on (task, metric, item, item_hash).
        cluster: items that share a template, topic or document; the item itself where there is nothing to share.
        value: numerator.
        weight: denominator, > 0.
    """

    task: str
    metric: str
    item: str
    item_hash: str
    cluster: str
    value: float
    weight: float = 1.0


class ItemNote(Record):
    """One item for people to read: what was asked, what is right, what one model answered.

    No verdict is taken from it; the noise floor reads its margin.

    Attributes:
        task: name of the task, or of the text.
        item: as in `Sample`.
        item_hash: as in `Sample`.
        prompt: the question or the beginning of the text, shortened, on one line.
        target: the right answer; empty where there is none (text).
        answer: what the model chose or wrote; empty where it only read.
        margin_nats: log-likelihood of the right answer minus that of the best wrong one (of the right one itself where
            there is no other), a character where the task judges lengths apart; None where nothing is chosen.
    """

    task: str
    item: str
    item_hash: str
    prompt: str
    target: str = ""
    answer: str = ""
    margin_nats: float | None = None


class Samples(Record):
    """All samples of one model on one set of items, with the digest of the item set they must be compared on.

    Attributes:
        items_digest: digest of (task, metric, item, item_hash) of all rows, sorted.
        rows: the samples, sorted by (task, metric, item).
        notes: the items in readable form, where they were kept; no part of `items_digest`.
    """

    items_digest: str
    rows: tuple[Sample, ...]
    notes: tuple[ItemNote, ...] = ()
