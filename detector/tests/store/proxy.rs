//! A line between a store and its server that can be cut at a chosen word.
//!
//! It listens on a socket of its own and passes on every byte, until the store says the word it is armed with: then it cuts that
//! connection, before or after the server heard the word, and is armed no more. The word must come in one packet, as PostgreSQL's
//! short statements do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Where to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The server never hears the word.
    Before(&'static str),
    /// The server hears it, and has said the second word in answer; the store never hears that.
    After(&'static str, &'static str),
}

pub(crate) struct Proxy {
    dir: TempDir,
    armed: Arc<Mutex<Option<Cut>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(crate) fn start(server: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join(server.file_name().unwrap());
        let listener = UnixListener::bind(socket).unwrap();
        let armed = Arc::new(Mutex::new(None));
        let arm = Arc::clone(&armed);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&server).await.unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&arm)));
            }
        });
        Self { dir, armed, task }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn arm(&self, cut: Cut) {
        *self.armed.lock().unwrap() = Some(cut);
    }

    /// Whether it was cut since it was armed.
    pub(crate) fn was_cut(&self) -> bool {
        self.armed.lock().unwrap().is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes the cut if `said` has its word.
fn taken(armed: &Mutex<Option<Cut>>, said: &[u8]) -> Option<Cut> {
    let mut armed = armed.lock().unwrap();
    let cut = (*armed)?;
    let (Cut::Before(word) | Cut::After(word, _)) = cut;
    has(said, word).then(|| armed.take()).flatten()
}

fn has(said: &[u8], word: &str) -> bool {
    said.windows(word.len()).any(|part| part == word.as_bytes())
}

/// Until either side ends, or the line is cut.
async fn pass(mut client: UnixStream, mut server: UnixStream, armed: Arc<Mutex<Option<Cut>>>) {
    let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(bytes @ 1..) = read else { return };
                let cut = taken(&armed, &asked[..bytes]);
                if matches!(cut, Some(Cut::Before(_))) {
                    return;
                }
                if server.write_all(&asked[..bytes]).await.is_err() {
                    return;
                }
                if let Some(Cut::After(_, answer)) = cut {
                    // Waited for, so that it is known to be done. Answers to what was asked before may come first.
                    let mut heard = Vec::new();
                    while !has(&heard, answer) {
                        let Ok(bytes @ 1..) = server.read(&mut answered).await else { return };
                        heard.extend_from_slice(&answered[..bytes]);
                    }
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(bytes @ 1..) = read else { return };
                if client.write_all(&answered[..bytes]).await.is_err() {
                    return;
                }
            }
        }
    }
}
