//! How long things take, noted without a lock and read by Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// The upper bounds of the buckets: 1 ms, and twice as much each, up to 16 s.
const BOUNDS: usize = 15;

/// A histogram of times.
#[derive(Debug, Clone, Default)]
pub struct Latency(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    /// How many were within each bound and above the one before; the last are above all bounds.
    buckets: [AtomicU64; BOUNDS + 1],
    sum_us: AtomicU64,
}

/// A bound in milliseconds.
fn bound_ms(bucket: usize) -> u64 {
    1 << bucket
}

impl Latency {
    /// Notes that something took so long.
    pub fn note(&self, took: Duration) {
        let bucket = (0..BOUNDS).find(|bucket| took <= Duration::from_millis(bound_ms(*bucket)));
        self.0.buckets[bucket.unwrap_or(BOUNDS)].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        let bound = |bucket| match bucket {
            BOUNDS => f64::INFINITY,
            bucket => Duration::from_millis(bound_ms(bucket)).as_secs_f64(),
        };
        let counts: Vec<(f64, u64)> = (0..=BOUNDS)
            .map(|bucket| (bound(bucket), self.0.buckets[bucket].load(Ordering::Relaxed)))
            .collect();
        let sum = Duration::from_micros(self.0.sum_us.load(Ordering::Relaxed)).as_secs_f64();
        let count = counts.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &counts, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl prometheus_client::metrics::TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn each_time_is_counted_in_every_bucket_that_is_wide_enough() {
        let latency = Latency::default();
        let mut registry = Registry::default();
        registry.register("took_seconds", "Times", latency.clone());
        for ms in [0, 1, 3, 20_000] {
            latency.note(Duration::from_millis(ms));
        }
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE took_seconds histogram\n",
            "took_seconds_sum 20.004\n",
            "took_seconds_count 4\n",
            "took_seconds_bucket{le=\"0.001\"} 2\n",
            "took_seconds_bucket{le=\"0.002\"} 2\n",
            "took_seconds_bucket{le=\"0.004\"} 3\n",
            "took_seconds_bucket{le=\"16.384\"} 3\n",
            "took_seconds_bucket{le=\"+Inf\"} 4\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
