//! Any text as a duration of the settings: what is read is shown so that it reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::settings::{parse_duration, show_duration};

fuzz_target!(|text: &str| {
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
    }
});
