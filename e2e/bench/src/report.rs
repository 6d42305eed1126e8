//! What was measured, as tables in Markdown.

use std::{fmt::Write as _, fs, time::Duration};

use time::{OffsetDateTime, macros::format_description};

/// One measured pass over a number of events.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Events.
    pub events: u64,
    /// Wall time.
    pub took: Duration,
    /// CPU time of the measured process.
    pub cpu: Duration,
    /// CPU time of the server at the other end that was caused by it, where that counts.
    pub server_cpu: Duration,
    /// CPU time of the program that made the load.
    pub load_cpu: Duration,
    /// The most memory that the process has had so far, bytes.
    pub peak_memory: u64,
    /// Time of an answer at the median and at the 99th percentile, where there are answers.
    pub answers: Option<(Duration, Duration)>,
}

impl Pass {
    /// CPU seconds for a million events: process and server.
    pub fn cpu_per_million(&self) -> f64 {
        (self.cpu + self.server_cpu).as_secs_f64() / self.events as f64 * 1e6
    }

    fn per_cpu_second(&self) -> f64 {
        1e6 / self.cpu_per_million()
    }

    fn per_second(&self) -> f64 {
        self.events as f64 / self.took.as_secs_f64()
    }
}

/// The passes of one kind of work, in their order.
#[derive(Clone, Debug)]
pub struct Series {
    /// What was measured.
    pub name: String,
    /// Every pass.
    pub passes: Vec<Pass>,
}

impl Series {
    /// A series without passes yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), passes: Vec::new() }
    }

    fn middle(&self, of: impl Fn(&Pass) -> f64) -> f64 {
        median(self.passes.iter().map(of).collect())
    }
}

/// The middle value; of an even number of values the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

/// Half the distance between the smallest and the largest value, in percent of the median.
pub fn spread(values: &[f64]) -> f64 {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (most - least) / 2.0 / median(values.to_vec()) * 100.0
}

/// Which way an aim points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The value is to be at most the bound.
    AtMost,
    /// The value is to be at least the bound.
    AtLeast,
}

/// A value held against what is aimed at.
#[derive(Clone, Debug)]
pub struct Ratio {
    /// What is compared.
    pub what: String,
    /// The value of every repetition.
    pub values: Vec<f64>,
    /// Bound and direction; `None` where nothing is aimed at.
    pub aim: Option<(Aim, f64)>,
    /// Unit behind the number.
    pub unit: &'static str,
}

impl Ratio {
    /// Quotients of two series, repetition by repetition, of events per CPU second (`CPU seconds of the second / of the
    /// first`).
    pub fn of_speed(what: &str, ours: &Series, theirs: &Series, aim: Option<(Aim, f64)>) -> Self {
        let pairs = ours.passes.iter().zip(&theirs.passes);
        let values = pairs.map(|(a, b)| b.cpu_per_million() / a.cpu_per_million() * 100.0).collect();
        Self { what: what.to_owned(), values, aim, unit: " %" }
    }

    /// Quotients of two series, repetition by repetition, of CPU seconds for an event.
    pub fn of_cost(what: &str, ours: &Series, theirs: &Series, aim: Option<(Aim, f64)>) -> Self {
        let pairs = ours.passes.iter().zip(&theirs.passes);
        let values = pairs.map(|(a, b)| a.cpu_per_million() / b.cpu_per_million() * 100.0).collect();
        Self { what: what.to_owned(), values, aim, unit: " %" }
    }

    fn row(&self) -> String {
        let value = median(self.values.clone());
        let verdict = match self.aim {
            None => String::new(),
            Some((Aim::AtMost, bound)) if value <= bound => format!("at most {bound}{}: reached", self.unit),
            Some((Aim::AtLeast, bound)) if value >= bound => {
                format!("at least {bound}{}: reached", self.unit)
            }
            Some((Aim::AtMost, bound)) => format!("at most {bound}{}: **not reached**", self.unit),
            Some((Aim::AtLeast, bound)) => format!("at least {bound}{}: **not reached**", self.unit),
        };
        format!("| {} | {value:.1}{} | ±{:.0} % | {verdict} |", self.what, self.unit, spread(&self.values))
    }
}

/// The table of ratios and aims.
pub fn ratios(ratios: &[Ratio]) -> String {
    let mut table = "| ratio | median | spread | aim |\n|---|---|---|---|\n".to_owned();
    for ratio in ratios {
        table.push_str(&ratio.row());
        table.push('\n');
    }
    table
}

/// The table of absolute figures.
pub fn figures(series: &[Series]) -> String {
    let mut table = "| work | CPU-s per million events | spread | events per CPU-s | events/s | process + server | \
                     load generator | answers p50 / p99 | peak memory |\n|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for series in series {
        let costs: Vec<f64> = series.passes.iter().map(Pass::cpu_per_million).collect();
        let million = |of: fn(&Pass) -> Duration| {
            series.middle(|pass| of(pass).as_secs_f64() / pass.events as f64 * 1e6)
        };
        let server = million(|pass| pass.server_cpu);
        let parts = if server > 0.0 {
            format!("{:.2} + {server:.2}", million(|pass| pass.cpu))
        } else {
            String::new()
        };
        let answers = if series.passes.iter().all(|pass| pass.answers.is_some()) {
            let part = |of: fn((Duration, Duration)) -> Duration| {
                series.middle(|pass| pass.answers.map_or(0.0, |answers| of(answers).as_secs_f64() * 1e3))
            };
            format!("{:.1} / {:.1} ms", part(|answers| answers.0), part(|answers| answers.1))
        } else {
            String::new()
        };
        let peak = series.passes.iter().map(|pass| pass.peak_memory).max().unwrap_or_default();
        let peak = if peak > 0 { format!("{} MiB", peak >> 20) } else { String::new() };
        let load = million(|pass| pass.load_cpu);
        let load = if load > 0.0 { format!("{load:.2}") } else { String::new() };
        let _ = writeln!(
            table,
            "| {} | {:.2} | ±{:.0} % | {:.0} | {:.0} | {parts} | {load} | {answers} | {peak} |",
            series.name,
            median(costs.clone()),
            spread(&costs),
            series.middle(Pass::per_cpu_second),
            series.middle(Pass::per_second),
        );
    }
    table
}

/// Value at a percentile of sorted values.
pub fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    let place = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(place.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The machine and how busy it is.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()))
        .unwrap_or("unknown processor")
        .to_owned();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    format!("{cores} × {model}, {} GiB memory, Linux {kernel}", (memory + (1 << 19)) >> 20)
}

/// Load average of the last minute.
pub fn busy() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// Date and time, UTC.
pub fn now() -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    OffsetDateTime::now_utc().format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(cpu: u64, server: u64) -> Pass {
        Pass {
            events: 1_000_000,
            took: Duration::from_secs(10),
            cpu: Duration::from_secs(cpu),
            server_cpu: Duration::from_secs(server),
            load_cpu: Duration::ZERO,
            peak_memory: 0,
            answers: None,
        }
    }

    #[test]
    fn the_middle_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
        assert_eq!(spread(&[9.0, 10.0, 11.0]), 10.0);
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50.0), Duration::from_millis(50));
        assert_eq!(percentile(&values, 99.0), Duration::from_millis(99));
        assert_eq!(percentile(&values[..1], 99.0), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99.0), Duration::ZERO);
    }

    #[test]
    fn a_ratio_says_whether_its_aim_is_reached() {
        let ours = Series { name: "ours".into(), passes: vec![pass(2, 4), pass(2, 5)] };
        let theirs = Series { name: "theirs".into(), passes: vec![pass(0, 10), pass(0, 10)] };
        let cost = Ratio::of_cost("cost", &ours, &theirs, Some((Aim::AtMost, 65.0)));
        assert_eq!(cost.values, [60.0, 70.0]);
        assert!(cost.row().contains("65.0 % | ±8 % | at most 65 %: reached"), "{}", cost.row());
        let speed = Ratio::of_speed("speed", &theirs, &ours, Some((Aim::AtLeast, 66.0)));
        assert!(speed.row().contains("**not reached**"), "{}", speed.row());
    }

    #[test]
    fn figures_tell_process_and_server_apart() {
        let series = Series { name: "export".into(), passes: vec![pass(2, 4), pass(2, 4), pass(3, 4)] };
        let table = figures(&[series]);
        assert!(table.contains("| export | 6.00 | ±8 % | 166667 | 100000 | 2.00 + 4.00 |"), "{table}");
    }
}
