//! The children of this program: none outlives the value that stands for it, nor this program itself.

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::root;

/// A program of what `make` installs from Debian's packages: from where that put it, or from the directory that the
/// variable of its name gives.
pub(crate) fn packaged(name: &str, version: &str, program: &str) -> Result<PathBuf> {
    let (target, variable) = (name.to_lowercase(), name.to_uppercase().replace('-', "_"));
    match env::var_os(&variable).filter(|directory| !directory.is_empty()) {
        Some(directory) => {
            let path = PathBuf::from(directory).join(program);
            ensure!(path.is_file(), "there is no {}, where {variable} says that it is", path.display());
            Ok(path)
        }
        None => {
            let path = root().join(format!(".tools/{target}-{version}")).join(program);
            let advice = format!("run `make {target}`, or set {variable} to the directory of another");
            ensure!(path.is_file(), "no {name} {version} at {}: {advice}", path.display());
            Ok(path)
        }
    }
}

/// A child that does not outlive this value.
#[derive(Debug)]
pub(crate) struct Process(Mutex<Child>);

impl Process {
    /// Starts the command from a thread that lives as long as this program. The kernel kills the child when the
    /// *thread* that started it ends, and a test's thread ends with the test, though what several tests share must not.
    pub(crate) async fn start(mut command: Command) -> Result<Self> {
        static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
        die_with_parent(&mut command);
        let program = PathBuf::from(command.get_program());
        let spawner = SPAWNER.get_or_init(|| {
            let (sender, jobs) = mpsc::channel::<Job>();
            thread::Builder::new()
                .name("spawner".to_owned())
                .spawn(move || {
                    for (mut command, answer) in jobs {
                        // When the asker is gone, the child comes back here, and must go as well.
                        if let Err(Ok(child)) = answer.send(command.spawn()) {
                            drop(Process(Mutex::new(child)));
                        }
                    }
                })
                .expect("a thread");
            sender
        });
        let (answer, child) = oneshot::channel();
        spawner.send((command, answer)).expect("the spawner never ends");
        let child = child.await?.with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Process(Mutex::new(child)))
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.0.lock().unwrap().try_wait().expect("our own child can be waited for")
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.lock().unwrap().id()
    }

    /// Runs what waits for the process, but no longer than that lives; an error gets the end of the log.
    pub(crate) async fn while_alive<T>(
        &self,
        name: &str,
        log: impl Fn() -> String,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let death = async {
            loop {
                match self.ended() {
                    Some(status) => return status,
                    None => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let result = tokio::select! {
            result = work => result,
            status = death => Err(anyhow::anyhow!("{name} has ended: {status}")),
        };
        result.map_err(|error| anyhow::anyhow!("{error:#}\n--- {name}'s log ends with:\n{}", tail(&log())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        // It may have ended before; then there is nothing to do, and nobody to tell.
        let _ = child.kill();
        let _ = child.wait();
    }
}

type Job = (Command, oneshot::Sender<io::Result<Child>>);

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "std has no safe way to ask for the parent-death signal")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        // SAFETY: both calls are async-signal-safe and touch no memory of ours.
        let (set, now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        match (set, u32::try_from(now) == Ok(parent)) {
            (0, true) => Ok(()),
            (0, false) => Err(io::Error::other("the parent died before")),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure allocates nothing and takes no lock, so it may run between fork and exec.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// The last lines of a log.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    // Some of Envoy's first lines list everything that is built in.
    let cut = |line: &&str| line.chars().take(300).collect::<String>();
    lines[lines.len().saturating_sub(20)..].iter().map(cut).collect::<Vec<_>>().join("\n")
}
