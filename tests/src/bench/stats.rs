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
    fn one_slow_round_does_not_move_a_ratio() {
        let pairs = Pairs {
            ours: vec![1.0, 1.0, 100.0],
            theirs: vec![2.0, 2.0, 2.0],
        };
        assert_eq!(pairs.ratio(), 0.5);
    }
}
