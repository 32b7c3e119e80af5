//! Whether a person means it, and what is waited for.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::Force;
use crate::clock;

/// How often a state that is about to change is looked at.
pub const EVERY: Duration = Duration::from_millis(500);
/// All that a wait may take: a copy of a large database takes hours.
pub const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// Has the word typed on which what follows depends. A script says `--force`.
///
/// # Errors
/// Another word was typed, or nobody is there to type.
pub fn confirm(force: Force, what: &str, word: &str) -> anyhow::Result<()> {
    if force.force {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("{what}: nobody is there to confirm it; say --force if you mean it");
    }
    typed(&format!("{what}\nType {word} to go on: "), word)
}

/// Asks, and takes no other answer than this one, whoever types it.
///
/// # Errors
/// Another word was typed.
pub fn typed(question: &str, word: &str) -> anyhow::Result<()> {
    let mut terminal = io::stderr();
    write!(terminal, "{question}").and_then(|()| terminal.flush()).context("could not ask")?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("could not read the answer")?;
    if line.trim() == word { Ok(()) } else { bail!("not confirmed: nothing was done") }
}

/// Waits until `look` says that it is done (`None`); meanwhile it says what it waits for, which is shown when it changes.
///
/// # Errors
/// It takes longer than `limit`.
pub async fn until<F>(limit: Duration, mut look: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = Option<String>>,
{
    let deadline = clock::now() + limit;
    let mut shown = String::new();
    loop {
        let Some(waits_for) = look().await else { return Ok(()) };
        if waits_for != shown {
            writeln!(io::stderr(), "waiting: {waits_for}").context("could not print")?;
            shown.clone_from(&waits_for);
        }
        if clock::now() >= deadline {
            bail!("still waiting after {limit:?}: {waits_for}");
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_when_it_is_done_or_with_its_limit() {
        let mut n = 0;
        let done = until(Duration::from_secs(60), || {
            n += 1;
            std::future::ready((n < 2).then(|| "n1 is coming up".to_owned()))
        });
        done.await.unwrap();
        let never = until(Duration::ZERO, || std::future::ready(Some("for ever".to_owned()))).await;
        assert!(never.unwrap_err().to_string().ends_with("for ever"));
    }

    #[test]
    fn a_script_must_say_force() {
        assert!(confirm(Force { force: true }, "x", "y").is_ok());
    }
}
