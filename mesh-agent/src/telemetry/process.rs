//! The process's own figures from `/proc/self`, under the names that every Prometheus client uses.

use std::fs;

use super::metrics::Kind;

/// One figure.
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    pub(super) value: f64,
}

/// The figures that can be read now; what cannot be read is left out.
pub(super) fn read() -> Vec<Figure> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let descriptors = fs::read_dir("/proc/self/fd").map(|dir| dir.count() as f64).ok();
    let kib = |key| status_kib(&status, key).map(|kib| kib * 1024.0);
    let gauge = |name, help, value: Option<f64>| {
        value.map(|value| Figure {
            name,
            help,
            kind: Kind::Gauge,
            value,
        })
    };
    [
        gauge("process_resident_memory_bytes", "Resident memory.", kib("VmRSS:")),
        gauge("process_virtual_memory_bytes", "Virtual memory.", kib("VmSize:")),
        gauge("process_open_fds", "Open file descriptors.", descriptors),
        gauge(
            "process_max_fds",
            "Limit of open file descriptors.",
            limit(&limits),
        ),
        gauge("process_threads", "Threads.", status_number(&status, "Threads:")),
        cpu_seconds(&stat, ticks_per_second()).map(|value| Figure {
            name: "process_cpu_seconds_total",
            help: "User and system CPU time.",
            kind: Kind::Counter,
            value,
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn status_number(status: &str, key: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The soft limit in proc_pid_limits(5); none where it is unlimited.
fn limit(limits: &str) -> Option<f64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn status_kib(status: &str, key: &str) -> Option<f64> {
    status_number(status, key)
}

/// utime and stime: the 14th and 15th field of proc_pid_stat(5). The second field may hold spaces and parentheses.
fn cpu_seconds(stat: &str, ticks: f64) -> Option<f64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / ticks)
}

fn ticks_per_second() -> f64 {
    match nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) if ticks > 0 => ticks as f64,
        _ => 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_an_odd_process_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        assert_eq!(cpu_seconds(stat, 100.0), Some(2.0));
    }

    #[test]
    fn figures_of_this_process_are_above_zero() {
        let figures = read();
        for name in [
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_threads",
        ] {
            let figure = figures.iter().find(|f| f.name == name).unwrap();
            assert!(figure.value > 0.0, "{name}");
        }
    }

    #[test]
    fn a_cut_stat_line_gives_nothing() {
        assert_eq!(cpu_seconds("42 (a) S 1 2", 100.0), None);
        assert_eq!(cpu_seconds("", 100.0), None);
    }
}
