//! Medians and their spread.

/// The value below which a share of the values lies, between the two nearest by rank; 0 for none.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The distance between the quartiles.
pub fn spread(values: &[f64]) -> f64 {
    quantile(values, 0.75) - quantile(values, 0.25)
}

/// How alike two series are (Pearson's coefficient): 1 when they rise and fall together, 0 when they have nothing to do
/// with each other or one of them is flat.
pub fn correlation(one: &[f64], other: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (one_mean, other_mean) = (mean(one), mean(other));
    let product = |a: &[f64], a_mean: f64, b: &[f64], b_mean: f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - a_mean) * (b - b_mean)).sum()
    };
    let both = product(one, one_mean, other, other_mean);
    let scale = product(one, one_mean, one, one_mean) * product(other, other_mean, other, other_mean);
    if scale > 0.0 { both / scale.sqrt() } else { 0.0 }
}

/// A measured thing and what it is measured against, round by round.
#[derive(Debug, Clone, Default)]
pub struct Pairs {
    pub ours: Vec<f64>,
    pub theirs: Vec<f64>,
}

impl Pairs {
    /// The ratio of the medians.
    pub fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.theirs)
    }

    /// How far the ratios of single rounds are apart.
    pub fn spread(&self) -> f64 {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(a, b)| a / b).collect();
        spread(&ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_nearest_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), 2.5);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 1.0), 4.0);
        assert_eq!(spread(&values), 1.5);
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn series_in_step_are_told_from_others() {
        let one = [1.0, 2.0, 3.0, 4.0];
        assert!((correlation(&one, &[11.0, 12.0, 13.0, 14.0]) - 1.0).abs() < 1e-9);
        assert!((correlation(&one, &[4.0, 3.0, 2.0, 1.0]) + 1.0).abs() < 1e-9);
        assert!(correlation(&one, &[1.0, -1.0, -1.0, 1.0]).abs() < 1e-9);
        assert_eq!(correlation(&one, &[5.0; 4]), 0.0);
    }

    #[test]
    fn one_slow_round_does_not_move_a_ratio() {
        let pairs = Pairs {
            ours: vec![1.0, 1.0, 100.0],
            theirs: vec![2.0, 2.0, 2.0],
        };
        assert_eq!(pairs.ratio(), 0.5);
    }
}
