//! What the plugin leaves for people: a line to a call, on standard error and in `RUN/cni.log`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The file is put aside as `cni.log.1` when it is longer than this, in bytes.
const LONGEST: u64 = 1 << 20;

/// The log of one call.
#[derive(Debug)]
pub struct Log {
    start: Instant,
    last: Instant,
    steps: String,
    notes: Vec<String>,
}

impl Default for Log {
    fn default() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, steps: String::new(), notes: Vec::new() }
    }
}

impl Log {
    /// Records that a step is done, and how long it took.
    pub fn step(&mut self, name: &str) {
        let now = Instant::now();
        let _ = write!(self.steps, " {name}={}us", (now - self.last).as_micros());
        self.last = now;
    }

    /// Records something that went wrong and does not end the call.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// What was noted.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Writes the lines of this call: `what` names command and attachment, `outcome` how it ended.
    /// That they cannot be written is no reason to fail.
    pub fn finish(&self, run_dir: Option<&Path>, what: &str, outcome: &str) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let total = self.start.elapsed().as_micros();
        let mut text = String::new();
        for note in &self.notes {
            let _ = writeln!(text, "{}.{:03} {what}: {note}", time.as_secs(), time.subsec_millis());
        }
        let _ = writeln!(
            text,
            "{}.{:03} {what}: {outcome} total={total}us{}",
            time.as_secs(),
            time.subsec_millis(),
            self.steps
        );
        let _ = std::io::stderr().write_all(text.as_bytes());
        let Some(run_dir) = run_dir else { return };
        let path = run_dir.join("cni.log");
        if fs::metadata(&path).is_ok_and(|m| m.len() > LONGEST) {
            let _ = fs::rename(&path, run_dir.join("cni.log.1"));
        }
        if let Ok(mut file) = File::options().append(true).create(true).open(&path) {
            let _ = file.write_all(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_put_aside_when_it_is_long_and_one_of_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, before) = (dir.path().join("cni.log"), dir.path().join("cni.log.1"));
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let mut log = Log::default();
        log.note("something");
        log.step("reserve");
        log.finish(Some(dir.path()), "ADD c1 eth0", "done");
        let lines = read(&file);
        assert!(lines.contains(" ADD c1 eth0: something\n") && lines.contains(" ADD c1 eth0: done total="));
        for turn in 0..3 {
            fs::write(&file, format!("{turn}").repeat(LONGEST as usize + 1)).unwrap();
            log.finish(Some(dir.path()), "DEL c1 eth0", "done");
            assert_eq!(read(&file).lines().count(), 2);
            assert!(read(&before).starts_with(&format!("{turn}{turn}")));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // Where it cannot be written nobody fails.
        log.finish(Some(Path::new("/nowhere")), "DEL c1 eth0", "done");
    }
}
