//! How busy this machine is.

/// The share of the processors that was wanted over the last minute, from 0 to 1. proc(5), `/proc/loadavg`.
pub fn average() -> f32 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse::<f32>().ok())
        .map_or(0.0, |load| (load / processors as f32).clamp(0.0, 1.0))
}
