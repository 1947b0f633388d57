//! Medians, spread, and ratios pair by pair.

/// Measured values of one thing, sorted.
#[derive(Clone, Debug)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Of at least one value.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn new(mut values: Vec<f64>) -> anyhow::Result<Self> {
        anyhow::ensure!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Ok(Self(values))
    }

    /// The value below which this share of them lies, interpolated.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let at = share * (self.0.len() - 1) as f64;
        let (low, high) = (at.floor() as usize, at.ceil() as usize);
        self.0[low] + (self.0[high] - self.0[low]) * at.fract()
    }

    /// The median.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The smallest.
    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    /// The interval that holds the median with 95 % confidence, whatever the distribution, by order
    /// statistics.
    pub(crate) fn confidence(&self) -> (f64, f64) {
        let n = self.0.len() as f64;
        let half = 0.98 * n.sqrt();
        let low = (n / 2.0 - half).floor().max(0.0) as usize;
        let high = ((n / 2.0 + half).ceil() as usize).min(self.0.len() - 1);
        (self.0[low], self.0[high])
    }

    /// "median (quartile–quartile, min)".
    pub(crate) fn told(&self, digits: usize) -> String {
        format!(
            "{:.digits$} ({:.digits$}–{:.digits$}, min {:.digits$})",
            self.median(),
            self.quantile(0.25),
            self.quantile(0.75),
            self.min()
        )
    }
}

/// Ratios of what was measured side by side, round by round.
///
/// # Errors
/// Where there are no pairs.
pub(crate) fn ratios(ours: &[f64], theirs: &[f64]) -> anyhow::Result<Samples> {
    Samples::new(ours.iter().zip(theirs).map(|(a, b)| a / b).collect())
}

/// "0.25 (0.23–0.27)", and whether it is within noise of 1.
pub(crate) fn ratio_told(ratio: &Samples) -> String {
    let (low, high) = ratio.confidence();
    let noise = if low <= 1.0 && 1.0 <= high { ", within noise" } else { "" };
    format!("{:.2} ({:.2}–{:.2}{noise})", ratio.median(), ratio.quantile(0.25), ratio.quantile(0.75))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_and_order_does_not_matter() {
        let samples = Samples::new(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((samples.min(), samples.quantile(0.25), samples.median()), (1.0, 1.75, 2.5));
    }

    #[test]
    fn equal_things_are_within_noise_and_others_are_not() {
        let theirs: Vec<f64> = (0..50).map(|i| 100.0 + f64::from(i % 7)).collect();
        let same: Vec<f64> = (0..50).map(|i| 100.0 + f64::from((i + 3) % 7)).collect();
        let half: Vec<f64> = theirs.iter().map(|v| v / 2.0).collect();
        assert!(ratio_told(&ratios(&same, &theirs).unwrap()).contains("within noise"));
        assert_eq!(ratio_told(&ratios(&half, &theirs).unwrap()), "0.50 (0.50–0.50)");
    }

    #[test]
    fn nothing_measured_is_an_error() {
        assert!(ratios(&[], &[1.0]).is_err());
    }
}
