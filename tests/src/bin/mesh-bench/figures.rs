//! Figures: what several runs gave, each compared with the run beside it.

use std::fmt;

use serde::Serialize;

/// What a figure is aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aim {
    /// The median of the ratios.
    RatioAtLeast(f64),
    /// The median of the ratios.
    RatioAtMost(f64),
    /// The median of the values.
    AtLeast(f64),
    /// The median of the values.
    AtMost(f64),
}

impl Aim {
    /// Whether it was reached; `None` where there is nothing to judge.
    fn met(self, values: Option<Spread>, ratios: Option<Spread>) -> Option<bool> {
        match self {
            Self::RatioAtLeast(aim) => ratios.map(|ratios| ratios.median >= aim),
            Self::RatioAtMost(aim) => ratios.map(|ratios| ratios.median <= aim),
            Self::AtLeast(aim) => values.map(|values| values.median >= aim),
            Self::AtMost(aim) => values.map(|values| values.median <= aim),
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtLeast(aim) => write!(f, "ratio ≥ {}", number(*aim)),
            Self::RatioAtMost(aim) => write!(f, "ratio ≤ {}", number(*aim)),
            Self::AtLeast(aim) => write!(f, "≥ {}", number(*aim)),
            Self::AtMost(aim) => write!(f, "≤ {}", number(*aim)),
        }
    }
}

/// One number of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    aim: Option<Aim>,
}

impl Sample {
    /// With what its figure is aimed at.
    pub(crate) fn aim(self, aim: Aim) -> Self {
        Self {
            aim: Some(aim),
            ..self
        }
    }
}

/// Shorthand.
pub(crate) fn sample(name: &'static str, unit: &'static str, value: f64) -> Sample {
    Sample {
        name,
        unit,
        value,
        aim: None,
    }
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
    /// What it is aimed at.
    pub(crate) aim: Option<Aim>,
    /// Whether that was reached; unsaid where there is no aim, and where the machine had other things to do.
    pub(crate) met: Option<bool>,
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
                aim: sample.aim,
                met: None,
                values,
                base,
            }
        })
        .collect()
}

/// Says of each figure with an aim whether it was reached.
pub(crate) fn judge(figures: &mut [Figure]) {
    for figure in figures {
        figure.met = figure.aim.and_then(|aim| aim.met(figure.spread, figure.ratio));
    }
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
        if let Some(aim) = figure.aim {
            let verdict = match figure.met {
                Some(true) => "met",
                Some(false) => "missed",
                None => "not judged",
            };
            line.push_str(&format!("   aim {aim}: {verdict}"));
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
    fn aims_are_judged_by_the_median_and_only_when_asked_for() {
        let run = |value| vec![sample("rate", "/s", value).aim(Aim::RatioAtLeast(0.5))];
        let mut made = figures("", "mesh", Some("none"), &[run(49.0)], &[run(100.0)]);
        assert_eq!(made[0].met, None);
        judge(&mut made);
        assert_eq!(made[0].met, Some(false));
        assert_eq!(
            Aim::AtMost(20.0).met(Spread::of(&[19.0, 30.0, 10.0]), None),
            Some(true)
        );
        assert_eq!(Aim::RatioAtMost(2.0).met(Spread::of(&[1.0]), None), None);
        assert_eq!(Aim::RatioAtLeast(0.4).to_string(), "ratio ≥ 0.40");
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let spread = Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.median, spread.least, spread.most), (2.5, 1.0, 4.0));
    }
}
