//! What callbacks are told, in which order: Patroni's events with Patroni's roles.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::stand::{By, SOON, Stand};
use crate::wait::eventually;

fn heard_by(stand: &Stand, member: u8) -> PathBuf {
    stand.dir.join(format!("n{member}.heard"))
}

/// Every event is written down.
fn listen(stand: &mut Stand, member: u8) {
    let note = format!("sh -c 'echo $0 $1 $2 >> {}'", heard_by(stand, member).display());
    let events = ["on_start", "on_stop", "on_restart", "on_reload", "on_role_change"];
    let lines = events.map(|event| format!("    {event}: {note}\n")).concat();
    stand.amend(member, ("\npostgresql:\n", &format!("\npostgresql:\n  callbacks:\n{lines}")));
}

/// Waits until these were the events, less the scope, since the last time that somebody asked. Whom a standby follows is told by a
/// reload, sooner or later than its part.
async fn heard(stand: &Stand, member: u8, events: &[&str]) {
    let (path, mut said) = (heard_by(stand, member), Vec::new());
    let all = eventually(SOON, async || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with("on_reload"));
        said = lines.map(|line| line.trim_end_matches(" demo").to_owned()).collect();
        (said == events).then_some(())
    });
    let all = all.await;
    assert!(all.is_some(), "n{member} was told {said:?}, not {events:?}: {}", stand.log(member));
    std::fs::write(&path, "").unwrap();
}

#[tokio::test]
async fn callbacks_are_told_what_patroni_tells_them() {
    let mut stand = Stand::new("false", None).await;
    std::fs::set_permissions(&stand.dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for member in [1, 2] {
        listen(&mut stand, member);
    }
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    heard(&stand, 1, &["on_start primary"]).await;
    stand.start(2, By::Pgherd);
    stand.streams(1, 2).await;
    heard(&stand, 2, &["on_start replica"]).await;

    assert_eq!(stand.post(2, "restart", json!({})).await.0, 200);
    stand.streams(1, 2).await;
    heard(&stand, 2, &["on_restart replica"]).await;
    assert_eq!(stand.post(1, "restart", json!({})).await.0, 200);
    heard(&stand, 1, &["on_restart primary"]).await;

    // The restart has cut the candidate off: it is waited for.
    stand.switchover(1, 2).await;
    stand.streams(2, 2).await;
    heard(&stand, 1, &["on_stop primary", "on_role_change replica"]).await;
    heard(&stand, 2, &["on_role_change primary"]).await;

    // A primary that does not start again: who waits for its word hears it before it is back as something else.
    let base = stand.dir.join("n2/data/postgresql.base.conf");
    let whole = std::fs::read_to_string(&base).unwrap();
    std::fs::write(&base, format!("{whole}\nno_such_parameter = on\n")).unwrap();
    kill(Pid::from_raw(stand.postmaster(2)), Signal::SIGKILL).unwrap();
    stand.leads(1).await;
    heard(&stand, 1, &["on_role_change primary"]).await;
    heard(&stand, 2, &["on_stop primary", "on_role_change demoted"]).await;
    std::fs::write(&base, whole).unwrap();
    stand.streams(1, 2).await;
    heard(&stand, 2, &["on_role_change replica"]).await;

    stand.stop(2).await;
    heard(&stand, 2, &["on_stop replica"]).await;
    stand.end().await;
}
