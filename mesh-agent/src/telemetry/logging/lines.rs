//! A queue of lines with a thread that writes them. When the queue is full, lines are dropped and counted: the data path must not wait
//! for a pipe that nobody reads.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

/// Lines that may wait.
const QUEUE: usize = 16_384;
/// Lines are written together up to about this many bytes.
const BATCH: usize = 64 << 10;
/// How long lines are gathered behind a write. Whoever logs wakes this thread only while it waits for a first line: without the pause each
/// line of a busy agent would cost the data path a wake-up, which takes longer than the line.
const GATHER: Duration = Duration::from_millis(5);
/// How long the end of the process waits for the queue.
const LAST_FLUSH: Duration = Duration::from_secs(1);

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The queue's owner. Dropping it waits a moment for what is queued.
pub(super) struct Lines {
    sender: SyncSender<Message>,
}

/// Puts lines into the queue; each `write` is one line.
#[derive(Clone)]
pub(super) struct LineSender {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes to `out`.
    pub(super) fn start(name: &str, out: impl Write + Send + 'static) -> io::Result<(Self, LineSender)> {
        let (sender, queue) = mpsc::sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || write_all(&queue, out, &counted))?;
        let lines = Self {
            sender: sender.clone(),
        };
        Ok((lines, LineSender { sender, dropped }))
    }

    /// Waits until what is queued now is written, a second at most.
    pub(super) fn flush(&self) {
        let end = Instant::now() + LAST_FLUSH;
        let (done, written) = mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.sender.try_send(message) {
            if Instant::now() >= end {
                return;
            }
            message = unsent;
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Write for LineSender {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Until all senders are gone. A line that cannot be written is lost: there is nobody to tell.
fn write_all(queue: &Receiver<Message>, mut out: impl Write, dropped: &AtomicU64) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        let mut waiting = None;
        while let Some(message) = next.take() {
            match message {
                Message::Line(line) => batch.extend_from_slice(&line),
                Message::Flush(done) => waiting = Some(done),
            }
            if batch.len() < BATCH && waiting.is_none() {
                next = queue.try_recv().ok();
            }
        }
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            n => batch.extend_from_slice(
                format!("{n} log lines were dropped: the log's reader is too slow\n").as_bytes(),
            ),
        }
        let _ = out.write_all(&batch).and_then(|()| out.flush());
        let more = batch.len() >= BATCH;
        batch.clear();
        if let Some(done) = waiting {
            let _ = done.send(());
        } else if !more {
            std::thread::sleep(GATHER);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps what is written; waits for the gate before each write.
    struct Gated(Arc<Mutex<()>>, Arc<Mutex<Vec<u8>>>);

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.0.lock().unwrap();
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let (lines, mut sender) = Lines::start("test", Gated(Arc::default(), written.clone())).unwrap();
        let expected: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        for line in expected.split_inclusive('\n') {
            assert_eq!(sender.write(line.as_bytes()).unwrap(), line.len());
        }
        drop(lines);
        assert_eq!(String::from_utf8_lossy(&written.lock().unwrap()), expected);
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_never_the_writer() {
        let (gate, written) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(Vec::new())));
        let (lines, mut sender) = Lines::start("test", Gated(gate.clone(), written.clone())).unwrap();
        let closed = gate.lock().unwrap();
        for _ in 0..QUEUE * 4 {
            sender.write_all(b"0123456789abcdef\n").unwrap();
        }
        drop(closed);
        // The queue is full: a flush finds room only once some of it is written.
        while lines.sender.try_send(Message::Line(b"last\n".to_vec())).is_err() {
            std::thread::yield_now();
        }
        drop(lines);
        let text = String::from_utf8_lossy(&written.lock().unwrap()).into_owned();
        assert!(
            text.contains(" log lines were dropped"),
            "nothing was said of dropped lines"
        );
        assert!(text.contains("last\n"), "what was queued last was not written");
    }
}
