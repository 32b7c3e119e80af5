#!/bin/bash
# Removes one guard of `ha::decide` and its rules after the other, and asks: does anything notice?
#
#   tests/sim/mutate.sh [NAME ...]      all guards, or these; SEEDS=10000, SCRATCH=target/mutants (a copy of the tree; it keeps
#                                       its own build directory)
#
# All mutants are compiled once, into one copy of the tree (`weave.pl`), and `MUTANT=number` says which one a process is. Each is
# shown to the scenarios, then to the kept schedules, then to so many seeds, until one of them notices.
#
# One line for each guard: its name and what noticed, or SURVIVED. Exit status 1 when one survived, or when a line of the table below
# no longer changes anything.
set -u
cd "$(dirname "$0")/../.."
SEEDS=${SEEDS:-10000} SCRATCH=${SCRATCH:-target/mutants}

# name | file in src/ha | perl expression
guards() {
    cat <<'TABLE'
fence|decide.rs|s/= fence\(view\)\.filter\(\|_\| !pause::is_on\(view\)\)/= fence(view).filter(|_| false)/
fence-another-leads|decide.rs|s/if let Some\(name\) = other \{/if let Some(name) = other.filter(|_| false) {/
fence-lease-lost|decide.rs|s/if view.lease == Lease::Lost \{/if false {/
fence-lease-end|decide.rs|s/if view.leads\(\) \|\| reclaimable\(view\) \{/if true {/
fence-reclaim-ready|decide.rs|s/=> s.readiness == Readiness::Ready,/=> s.readiness == Readiness::Ready || true,/
lapsed|decide.rs|s/\(harmless && held && /(false \&\& harmless \&\& held \&\& /
stop-gives-way|decide.rs|s/\(Phase::Stopping, _\) => stopping\(view\),/(Phase::Stopping, None) => stopping(view), (Phase::Stopping, Some(job)) => idle(Reason::Busy(job), Wake::Loop),/
compare-gives-way|decide.rs|s/if leaderless\(view\) => serving/if false => serving/
name-unclaimed|decide.rs|s/if view.memory.name == Name::Unclaimed \{/if false {/
wrong-data|decide.rs|s/= wrong_data\(view, snapshot\) \{/= wrong_data(view, snapshot).filter(|_| false) {/
without-store-patience|silence.rs|s/if for_good \{/if true {/
without-store-names|silence.rs|s/if lead::names_are_known\(view\) =>/if true =>/
died-before-promotion|decide.rs|s/DataDir::Cluster\(control\)\) if lineage::was_standby\(control\) =>/DataDir::Cluster(control)) if false \&\& lineage::was_standby(control) =>/
not-leading-any-more|decide.rs|s/if !view.leads\(\) \{\n        return idle/if false {\n        return idle/
crash-loop|decide.rs|s/if n >= lead::FAILED_STARTS && /if false \&\& /
publish-before-write|decide.rs|s/let publish = \(!known\)/let publish = (false \&\& !known)/
initialised-makes-no-cluster|decide.rs|s/Founding::Done => return act\(vec!\[Action::Release\], Reason::NothingToLead\),/Founding::Done => None,/
make-cluster-refused|decide.rs|s/if let Some\(reason\) = adoption::fresh_cluster_refused\(view\) \{/if let Some(reason) = adoption::fresh_cluster_refused(view).filter(|_| false) {/
store-not-ready|decide.rs|s/if snapshot.readiness == Readiness::NotReady \{/if false {/
retake-timeline|decide.rs|s/if answer.timeline < cluster \{/if false {/
bootstrap-known-cluster|decide.rs|s/Some\(Initialize::Done\(_\)\) => return idle\(Reason::WaitingForLeader, Wake::Loop\),/Some(Initialize::Done(_)) => {}/
bootstrap-nofailover|decide.rs|s/if view.rules.tags.failover == super::rules::Failover::Never \{/if false {/
survey-record|adoption.rs|s/(if let Some\(id\) = view.volume.system_id) \{/$1.filter(|_| false) {/
survey-data|adoption.rs|s/if let Some\(\(address, _\)\) = with_data \{/if let Some((address, _)) = with_data.filter(|_| false) {/
survey-silent|adoption.rs|s/\(!silent.is_empty\(\)\).then_some/(false \&\& !silent.is_empty()).then_some/
follow-unreadable|decide.rs|s/if view.volume.system_id != view.cluster_system_id\(\) =>/if false =>/
follow-serving|decide.rs|s/\(Instance::Down, _\) if !serving =>/(Instance::Down, _) if false \&\& !serving =>/
follow-checkpoint|decide.rs|s/m.checkpoint_after_promote == Some\(false\)/false \&\& m.checkpoint_after_promote == Some(false)/
follow-foreign|decide.rs|s/if Some\(control.system_id\) != view.cluster_system_id\(\) =>/if false \&\& Some(control.system_id) != view.cluster_system_id() =>/
follow-wal-removed|decide.rs|s/DataDir::Cluster\(_\)\) if view.memory.upstream_wal == UpstreamWal::Removed =>/DataDir::Cluster(_)) if false =>/
ancestry-current|decide.rs|s/known_ancestry\(view, &source\).filter\(current\)/known_ancestry(view, \&source).filter(|a| current(a) || true)/
ancestry-age|lineage.rs|s/view.now.since\(a.at\) < ANCESTRY_AGE/true/
kin-down|decide.rs|s/match lineage::kin_by_bytes\(view, snapshot, control.reached\(\), ancestry\) \{/match Kin::Same {/
kin-bytes|lineage.rs|s/        Containment::Differs => Kin::Other,/        Containment::Differs => kin(view, snapshot, local, \&asked.leader),/
kin-reached|decide.rs|s/match lineage::kin_by_bytes\(view, snapshot, control.reached\(\), ancestry\) \{/match lineage::kin_by_bytes(view, snapshot, control.timeline, ancestry) {/
kin-running|decide.rs|s/match lineage::kin\(view, snapshot, lineage::standby_timeline\(view, answer\), &source.name\) \{/match Kin::Same {/
lineage|decide.rs|s/match lineage::of_stopped\(control, ancestry\) \{/let _ = control; match Lineage::Part {/
rewind-limit|decide.rs|s/view.n_failures\(Job::Rewind\) >= REWINDS/false/
stalled|decide.rs|s/if !stalled \{/if true {/
starved|decide.rs|s/&& starved\(view\) \{/\&\& (true || starved(view)) {/
names-in-force-at-start|lead.rs|s/if let Some\(names\) = &view.memory.sync_names \{/if let Some(names) = view.memory.sync_names.as_ref().filter(|_| false) {/
names-implied-at-start|lead.rs|s/if electors.voters.is_empty\(\) \{/if true {/
promotion-needs-time|lead.rs|s/if left < PROMOTE_NEEDS \{/if false {/
close-sync-key|lead.rs|s/if view.rules.sync_mode != SyncMode::Off && !stands \{/if false \&\& !stands {/
names-at-promotion|lead.rs|s/&candidates::expected\(view, snapshot\),/\&[],/
starved-patience|lead.rs|s/if confirmers.is_empty\(\) && waits_for_somebody\(view\) \{/if false {/
confirmer-progress|lead.rs|s/let progress = if caught_up \{/let progress = if caught_up || true {/
confirmer-streams|candidates.rs|s/standby.state == "streaming" && /(true || standby.state == "streaming") \&\& /
confirmer-member|candidates.rs|s/map_or\(0, member_priority\)/map_or(1, member_priority)/
slots-ttl|slots.rs|s/view.now.since\(\*seen\) < ttl/true/
set-is-safe|sync.rs|s/(pub fn safe\([^{]*\{)/$1 if true { return true; }/
race-nofailover|race.rs|s/if view.rules.tags.failover == Failover::Never \{/if false {/
race-timeline|race.rs|s/if timeline < cluster \{/if false {/
race-not-synchronous|race.rs|s/if !entitled_to_run && /if false \&\& /
race-lag|race.rs|s/\(lag > view.rules.maximum_lag_on_failover\)/(false \&\& lag > view.rules.maximum_lag_on_failover)/
race-freeze|race.rs|s/let Some\(frozen\) = view.memory.frozen else/let Some(frozen) = view.memory.frozen.or(Some(Default::default())) else/
race-fresh-poll|race.rs|s/poll.at >= frozen && view.now.since\(poll.at\) < POLL_AGE/poll.at >= frozen || true/
race-primary-alive|race.rs|s/\(\*a == PollAnswer::Primary\).then_some\(n\)/(false \&\& *a == PollAnswer::Primary).then_some(n)/
race-last-leader|race.rs|s/if sync.is_some_and\(\|s\| s.leader.as_ref\(\) == Some\(&view.me\)\) \{/if false {/
race-behind|race.rs|s/&& ahead\(other, mine\) =>/\&\& false \&\& ahead(other, mine) =>/
race-rivals|race.rs|s/    voter \|\| \(other/    true || voter || (other/
race-votes|race.rs|s/if have >= need \{/if have >= need || true {/
race-frozen-votes|race.rs|s/c.motion == Motion::Frozen && //
race-outsider|race.rs|s/ \+ u32::from\(!electors.voters.contains\(&view.me\)\)//
race-ancestry|race.rs|s/\(other.timeline, other.position\) > mine/other.position > mine.1/
inherits-any-set|race.rs|s/(    if manual::inherits\(view, snapshot, claim, mine\) \{.*?\n    \}\n)(    if let Some\(reason\) = unfit.*?\n    \}\n)/$2$1/s
yields-to-electable|manual.rs|s/\(elected\(name\) &&/((true || elected(name)) \&\&/
yields-patience|manual.rs|s/view.now.since\(since\) >= patience/view.now.since(since) >= patience * 1000/
takeover-ttl|view.rs|s/stood >= self.takeover_after\(\)/stood >= self.takeover_after() \/ 2/
takeover-ours-only|view.rs|s/seen.holder == Holder::Ours\)/seen.holder == Holder::Ours || true)/
takeover-longer-ttl|view.rs|s/=> ttl.max\(before\)/=> { let _ = before; ttl }/
start-backoff|view.rs|s/Job::Start => 2,/Job::Start => 2000,/
unfit-hands-over|decide.rs|s/= fitness::unfit\(view, snapshot\) \{/= fitness::unfit(view, snapshot).filter(|_| false) {/
unfit-timeline-first|fitness.rs|s/&& !lead::timeline_is_written\(view, snapshot\)/\&\& false/
unfit-heir-timeline|fitness.rs|s/ && current\(m\)//
unfit-stands-back|decide.rs|s/if fitness::stands_back\(view\) =>/if false =>/
unfit-roomier|race.rs|s/= fitness::roomier\(view, snapshot, poll, mine\) \{/= fitness::roomier(view, snapshot, poll, mine).filter(|_| false) {/
unfit-stop-hangs|decide.rs|s/\.or_else\(\|\| fitness::stop_hangs\(view\)\)//
kin-remembered|lineage.rs|s/record.followed = source\(view\),/record.followed = None,/
race-other-timeline|race.rs|s/    lineage::foreign\(view, snapshot, timeline\)\n/    lineage::foreign(view, snapshot, timeline).filter(|_| false)\n/
close-sync-key-again|lead.rs|s/        && view.memory.sync_write == SyncWrite::Settled;\n    if/;\n    if/
pause-candidate|pause.rs|s/view.leads\(\) \|\| manual::is_forced\(view, snapshot\) \|\| manual::has_left\(view, snapshot\)/true/
door-closed|door.rs|s/StartAs::Primary if must_wait\(view, names\) =>/StartAs::Primary if false \&\& must_wait(view, names) =>/
door-standby|door.rs|s/StartAs::Standby\(whom\) if may_hold_unconfirmed\(view, whom.as_ref\(\)\) =>/StartAs::Standby(whom) if false \&\& may_hold_unconfirmed(view, whom.as_ref()) =>/
door-standby-remembered|door.rs|s/        view.volume.unconfirmed \|\| !/        !/
door-standby-streams|door.rs|s/let receives = /let receives = true || /
door-standby-judged|door.rs|s/ && control.state == ControlState::ShutDown;/;/
door-standby-timeline|door.rs|s/leader.flatten\(\) == Some\(answer.timeline\)/(leader.flatten() == Some(answer.timeline) || true)/
door-all-have-it|door.rs|s/        Instance::Primary\(answer, _\) => match missing\(view, answer, closed\) \{/        Instance::Primary(answer, _) => match missing(view, answer, closed).filter(|_| false) {/
retake-other-leader|decide.rs|s/match since.filter\(\|name\| \*name != view.me\) \{/match since.filter(|name| *name != view.me \&\& false) {/
promise-ends-with-key|promises.rs|s/snapshot.leader.is_none\(\) && snapshot.taken/snapshot.taken/
promise-ends-after|promises.rs|s/ && snapshot.taken > self.given//
TABLE
}

mkdir -p "$SCRATCH"
SCRATCH=$(cd "$SCRATCH" && pwd)
# Only what is newer is copied, so that cargo builds what has changed.
for part in Cargo.toml Cargo.lock src tests templates benches mock-flux-api README.md docs; do
    cp -ru "$part" "$SCRATCH/"
done
guards | perl tests/sim/weave.pl src/ha "$SCRATCH/src/ha" >"$SCRATCH/numbers"
wrong=$?
if ! grep -q 'fn mutant' "$SCRATCH/src/lib.rs"; then
    cat >>"$SCRATCH/src/lib.rs" <<'RUST'

/// Which mutant this process is.
pub fn mutant() -> u32 {
    static WHICH: std::sync::LazyLock<u32> =
        std::sync::LazyLock::new(|| std::env::var("MUTANT").ok().and_then(|n| n.parse().ok()).unwrap_or(0));
    *WHICH
}
RUST
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$SCRATCH/target}
log=$SCRATCH/mutant.log
# Optimised a little: the seeds are worth more than the build.
(cd "$SCRATCH" && cargo test --locked --config 'profile.dev.package.pgherd.opt-level=1' --test scenarios --test sim --no-run) \
    >"$log" 2>&1 || { grep -m1 -A5 '^error' "$log"; exit 1; }
program() { grep -oP "Executable tests/$1/main.rs \(\K[^)]+" "$log"; }
scenarios=$(program scenarios) sim=$(program sim)
cd "$SCRATCH" || exit 1
while read -r number name; do
    [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
    export MUTANT=$number
    if ! timeout 300 "$scenarios" >"$log" 2>&1; then
        by="scenario $(grep -m1 -oP '^test \K\S+(?= \.\.\. FAILED)' "$log")"
    elif ! timeout 600 "$sim" --seeds 0 >"$log" 2>&1; then
        by="schedule $(grep -m1 -oP 'schedules/\K.*' "$log" | cut -c1-90)"
    elif ! timeout 3600 "$sim" --seeds "$SEEDS" --until-failure >"$log" 2>&1; then
        by="seed $(grep -m1 -oP 'SEED=\K.*' "$log" | cut -c1-90)"
    else
        by="SURVIVED $SEEDS seeds" wrong=1
    fi
    echo "$name: $by"
done <"$SCRATCH/numbers"
exit $wrong
