//! Medians and quartiles. Pure.

use serde::Serialize;

/// What a number of rounds gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half the rounds gave less, half more.
    pub median: f64,
    /// A quarter of the rounds gave less.
    pub lower_quartile: f64,
    /// A quarter of the rounds gave more.
    pub upper_quartile: f64,
    /// How many rounds.
    pub rounds: usize,
}

impl Spread {
    /// The spread of some values; `None` without a finite one.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&values, 1, 2)?,
            lower_quartile: quantile(&values, 1, 4)?,
            upper_quartile: quantile(&values, 3, 4)?,
            rounds: values.len(),
        })
    }
}

/// The quantile `numerator / denominator` of sorted values, between the two nearest where it falls between them.
fn quantile(sorted: &[f64], numerator: usize, denominator: usize) -> Option<f64> {
    let position = sorted.len().checked_sub(1)? * numerator;
    let (index, rest) = (position / denominator, position % denominator);
    let low = *sorted.get(index)?;
    let high = sorted.get(index + 1).copied().unwrap_or(low);
    Some(low + (high - low) * ratio(rest as u64, denominator as u64))
}

/// `a / b`; not finite if `b` is 0.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts and nanoseconds of a few minutes"
)]
pub fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_nearest_values() {
        let spread = Spread::of([5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 3.0,
                lower_quartile: 2.0,
                upper_quartile: 4.0,
                rounds: 5
            }
        );
        let spread = Spread::of([1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.lower_quartile), (1.5, 1.25));
    }

    #[test]
    fn one_value_has_no_spread() {
        let spread = Spread::of([7.0]).unwrap();
        assert_eq!((spread.lower_quartile, spread.upper_quartile), (7.0, 7.0));
    }

    #[test]
    fn nothing_measured_is_no_figure() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([ratio(1, 0), ratio(0, 0)]), None);
    }
}
