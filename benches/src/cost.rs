//! What a contender costs: processor time and memory of its process, from `/proc`.

use anyhow::{Context as _, Result};

/// Processor time and memory of a process at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// User and system time since its start, in seconds.
    pub cpu: f64,
    /// Peak resident memory, in MiB.
    pub peak_mib: f64,
}

/// Clock ticks per second of `/proc/PID/stat`; 100 on every Linux that this runs on (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// Reads the cost of a process.
///
/// # Errors
/// When the process is gone.
pub fn of(pid: u32) -> Result<Cost> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces: fields are counted after it; utime and stime are the 14th and 15th of all.
    let (_, fields) = stat.rsplit_once(") ").context("a process name")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("a field")?.parse()?) };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let peak: f64 = peak.split_whitespace().next().context("a number")?.parse()?;
    Ok(Cost { cpu: (ticks(11)? + ticks(12)?) / TICKS, peak_mib: peak / 1024.0 })
}
