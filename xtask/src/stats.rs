//! Measured values: their median, and how far they lie apart.

/// Middle value; the mean of the two middle ones for an even count.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// `3.0 (1.0 to 4.0)`: the median, the lowest and the highest value. One value stands alone; none is `-`.
pub fn spread(values: &[f64], show: impl Fn(f64) -> String) -> String {
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(least, most), v| (v.min(least), v.max(most)));
    match values {
        [] => "-".to_string(),
        [one] => show(*one),
        _ => format!("{} ({} to {})", show(median(values)), show(least), show(most)),
    }
}

/// What follows the values of a table with such cells.
pub fn legend(turns: usize) -> String {
    format!("medians of {turns} turns (lowest to highest)")
}

/// One by the other, turn by turn.
pub fn ratios(above: &[f64], below: &[f64]) -> Vec<f64> {
    above.iter().zip(below).map(|(above, below)| above / below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_spread_has_the_median_between_both_ends() {
        let shown = |values: &[f64]| spread(values, |v| format!("{v:.1}"));
        assert_eq!(shown(&[4.0, 1.0, 3.0]), "3.0 (1.0 to 4.0)");
        assert_eq!((shown(&[2.0]).as_str(), shown(&[]).as_str()), ("2.0", "-"));
        assert_eq!(ratios(&[4.0, 9.0], &[2.0, 3.0]), [2.0, 3.0]);
    }
}
