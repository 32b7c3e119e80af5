//! What happens next: a wheel of short times, since a run is little else than taking the next event.

/// Microseconds of one place of the wheel, as a power of two.
const WIDTH: u32 = 13;
const PLACES: usize = 1024;

pub(crate) struct Queue {
    /// When, and where the event is; what lies rounds ahead waits in its place.
    wheel: Vec<Vec<(u64, usize)>>,
    turn: u64,
    n: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { wheel: vec![Vec::new(); PLACES], turn: 0, n: 0 }
    }
}

impl Queue {
    /// At this time, which is not past; of two at one time the one that was put in first comes first.
    pub(crate) fn push(&mut self, at: u64, slot: usize) {
        self.wheel[(at >> WIDTH) as usize % PLACES].push((at, slot));
        self.n += 1;
    }

    /// The next one's time and place.
    pub(crate) fn pop(&mut self) -> Option<(u64, usize)> {
        if self.n == 0 {
            return None;
        }
        loop {
            let place = self.turn as usize % PLACES;
            if let Some(next) = self.first_of(place) {
                self.n -= 1;
                return Some(self.wheel[place].remove(next));
            }
            self.turn += 1;
        }
    }

    /// Plain loops: this runs unoptimised, ten thousand times in a run.
    fn first_of(&self, place: usize) -> Option<usize> {
        let mut first = None;
        let mut before = (self.turn + 1) << WIDTH;
        for (i, (at, _slot)) in self.wheel[place].iter().enumerate() {
            if *at < before {
                (first, before) = (Some(i), *at);
            }
        }
        first
    }
}
