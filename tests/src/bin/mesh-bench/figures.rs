//! Figures: what several runs gave, each compared with the run beside it.

use serde::Serialize;

/// One number of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

/// Shorthand.
pub(crate) fn sample(name: &'static str, unit: &'static str, value: f64) -> Sample {
    Sample { name, unit, value }
}

/// Middle and extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of these values; `None` of none.
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, least, most })
    }
}

/// A number over all runs. `values[n]` and `base[n]` were measured one right after the other.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// What was measured.
    pub(crate) of: &'static str,
    /// What it is compared with.
    pub(crate) against: Option<&'static str>,
    pub(crate) values: Vec<f64>,
    pub(crate) base: Vec<f64>,
    /// Of the values.
    pub(crate) spread: Option<Spread>,
    /// Of value ÷ base, pair by pair.
    pub(crate) ratio: Option<Spread>,
}

/// Sorts samples into figures, in the order of the first run. A sample without its like in the base is a figure without a ratio.
pub(crate) fn figures(
    prefix: &str,
    of: &'static str,
    against: Option<&'static str>,
    runs: &[Vec<Sample>],
    bases: &[Vec<Sample>],
) -> Vec<Figure> {
    let Some(first) = runs.first() else {
        return Vec::new();
    };
    let pick = |runs: &[Vec<Sample>], name: &str| -> Vec<f64> {
        runs.iter()
            .filter_map(|run| run.iter().find(|sample| sample.name == name))
            .map(|sample| sample.value)
            .collect()
    };
    first
        .iter()
        .map(|sample| {
            let (values, base) = (pick(runs, sample.name), pick(bases, sample.name));
            let ratios: Vec<f64> = values
                .iter()
                .zip(&base)
                .filter(|(_, base)| **base > 0.0)
                .map(|(value, base)| value / base)
                .collect();
            Figure {
                name: format!("{prefix}{}", sample.name),
                unit: sample.unit,
                of,
                against: against.filter(|_| !base.is_empty()),
                spread: Spread::of(&values),
                ratio: Spread::of(&ratios),
                values,
                base,
            }
        })
        .collect()
}

/// A table.
pub(crate) fn print(figures: &[Figure]) {
    for figure in figures {
        let Some(spread) = figure.spread else { continue };
        let mut line = format!(
            "  {:<38} {:>12} {:<8} ({}–{})",
            figure.name,
            number(spread.median),
            figure.unit,
            number(spread.least),
            number(spread.most)
        );
        if let (Some(ratio), Some(against), Some(base)) =
            (figure.ratio, figure.against, Spread::of(&figure.base))
        {
            line.push_str(&format!(
                "   {against}: {}   ratio {:.2} ({:.2}–{:.2})",
                number(base.median),
                ratio.median,
                ratio.least,
                ratio.most
            ));
        }
        println!("{line}");
    }
}

/// Three digits, or all before the point.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_made_pair_by_pair_before_their_middle_is_taken() {
        let run = |value| vec![sample("rate", "/s", value)];
        let runs = [run(10.0), run(90.0), run(40.0)];
        let bases = [run(20.0), run(100.0), run(50.0)];
        let made = figures("", "mesh", Some("none"), &runs, &bases);
        assert_eq!(made.len(), 1);
        let ratio = made[0].ratio.unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (0.8, 0.5, 0.9));
        assert_eq!(made[0].spread.unwrap().median, 40.0);
    }

    #[test]
    fn a_figure_without_a_base_has_no_ratio() {
        let made = figures("", "mesh", Some("none"), &[vec![sample("rss", "MiB", 3.0)]], &[]);
        assert_eq!((made[0].ratio, made[0].against), (None, None));
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let spread = Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.median, spread.least, spread.most), (2.5, 1.0, 4.0));
    }
}
