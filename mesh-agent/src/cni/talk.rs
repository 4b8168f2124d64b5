//! What plugin and agent say to each other, on a Unix socket that only root can open: one question, one answer, a line of JSON each. The
//! network namespace comes along as an open file, because paths mean nothing between mount namespaces.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a message at most: a node has some hundred sandboxes, and an id 64 characters.
const LONGEST: usize = 256 << 10;
/// How long writing may take, and reading a question.
const LIMIT: Duration = Duration::from_secs(5);

/// Which pod, as the runtime names it in CNI_ARGS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PodName {
    pub(super) namespace: String,
    pub(super) name: String,
    /// The Pod's `metadata.uid`; some runtimes do not say.
    pub(super) uid: Option<String>,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub(super) enum Question {
    /// This sandbox was made, and its namespace comes along: answer when it is captured, or need not be.
    Add {
        pod: PodName,
        container: String,
        netns: PathBuf,
        addresses: Vec<IpAddr>,
        /// How long to try, milliseconds.
        wait: u64,
    },
    /// Is it as it must be?
    Check { pod: PodName },
    /// This sandbox goes.
    Delete { container: String },
    /// No sandboxes exist but these.
    Collect { containers: BTreeSet<String> },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "why", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// It is captured; or done, where something was to be done.
    Captured,
    /// It is not enrolled: nothing is to be done.
    NotEnrolled,
    /// It is enrolled and not captured, for this reason.
    Refused(String),
    /// The agent does not know the pod.
    Unknown(String),
}

/// Asks the agent at `socket`, and waits for its answer no longer than `limit`.
pub(super) fn ask(
    socket: &Path,
    question: &Question,
    netns: Option<&File>,
    limit: Duration,
) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(LIMIT))?;
    // Zero would mean for ever.
    stream.set_read_timeout(Some(limit.max(Duration::from_millis(10))))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    let fds: Vec<RawFd> = netns.map(File::as_raw_fd).into_iter().collect();
    let attached: Vec<ControlMessage<'_>> = match fds.as_slice() {
        [] => Vec::new(),
        fds => vec![ControlMessage::ScmRights(fds)],
    };
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&line)],
        &attached,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    (&stream).write_all(line.get(sent..).unwrap_or_default())?;
    parse(BufReader::new(&stream))
}

/// The agent's side: the question that comes on `stream`, and the namespace that came along.
pub(super) fn hear(stream: &UnixStream) -> io::Result<(Question, Option<File>)> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut buffer = vec![0; 16 << 10];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut netns = None;
    let received = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for attached in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = attached {
                for fd in fds {
                    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
                    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
                    netns.get_or_insert(File::from(owned));
                }
            }
        }
        message.bytes
    };
    buffer.truncate(received);
    let question = parse(BufReader::new(io::Cursor::new(buffer).chain(stream)))?;
    Ok((question, netns))
}

/// Answers.
pub(super) fn reply(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn parse<T: DeserializeOwned>(reader: impl BufRead) -> io::Result<T> {
    let mut line = Vec::new();
    let read = reader.take(LONGEST as u64).read_until(b'\n', &mut line)?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn exchange(question: &Question, netns: Option<&File>) -> (Question, Option<u64>, Answer) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (question, netns) = hear(&stream).unwrap();
            reply(&stream, &Answer::Refused("because".into())).unwrap();
            (question, netns.map(|file| file.metadata().unwrap().ino()))
        });
        let answer = ask(&path, question, netns, LIMIT).unwrap();
        let (heard, inode) = agent.join().unwrap();
        (heard, inode, answer)
    }

    #[test]
    fn questions_come_with_their_namespace_and_are_answered() {
        let netns = File::open("/proc/self/ns/net").unwrap();
        let question = Question::Add {
            pod: PodName {
                namespace: "shop".into(),
                name: "order".into(),
                uid: Some("u".into()),
            },
            container: "c".into(),
            netns: "/run/netns/x".into(),
            addresses: vec!["10.1.0.9".parse().unwrap()],
            wait: 100,
        };
        let (heard, inode, answer) = exchange(&question, Some(&netns));
        assert_eq!(heard, question);
        assert_eq!(inode, Some(netns.metadata().unwrap().ino()));
        assert_eq!(answer, Answer::Refused("because".into()));
    }

    #[test]
    fn questions_that_do_not_fit_one_packet_are_heard_whole() {
        let containers: BTreeSet<String> = (0..2000).map(|n| format!("{n:064}")).collect();
        let question = Question::Collect { containers };
        assert_eq!(
            exchange(&question, None),
            (question.clone(), None, Answer::Refused("because".into()))
        );
    }

    #[test]
    fn what_is_no_question_is_an_error_and_so_is_silence() {
        for bytes in [
            &b""[..],
            b"{}\n",
            b"\xff\xff\n",
            b"{\"ask\":\"add\"}\n",
            b"no end",
        ] {
            let (near, far) = UnixStream::pair().unwrap();
            (&near).write_all(bytes).unwrap();
            drop(near);
            assert!(hear(&far).is_err(), "{bytes:?}");
        }
    }
}
