//! Families of metrics from lines of labels and values.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Whether a value only grows.
#[derive(Clone, Copy)]
pub(in crate::telemetry) enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    pub(in crate::telemetry) fn family(self, name: &str, help: &str, rows: Vec<Row>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(match self {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
        });
        family.set_metric(rows.into_iter().map(|row| row.metric(self)).collect());
        family
    }
}

/// One line: labels and a value.
pub(in crate::telemetry) struct Row {
    labels: Vec<LabelPair>,
    value: f64,
}

impl Row {
    pub(in crate::telemetry) fn new(value: f64) -> Self {
        Self {
            labels: Vec::new(),
            value,
        }
    }

    pub(in crate::telemetry) fn label(mut self, name: &str, value: &str) -> Self {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        self.labels.push(pair);
        self
    }

    fn metric(self, kind: Kind) -> Metric {
        let mut metric = Metric::from_label(self.labels);
        match kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(self.value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(self.value);
                metric.set_gauge(gauge);
            }
        }
        metric
    }
}
