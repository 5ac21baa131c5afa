//! Many calls of one kind in one statement: what comes while the database is at work goes to it together, next.
//!
//! A call that comes alone is asked at once. Under load a statement and its commit are shared by as many as have gathered
//! meanwhile, and each of them costs less the more there are: so statements of a kind begin some time apart then.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::StoreError;

/// How many calls go into one statement at most.
const MOST: usize = 64;

type Asker<A> = oneshot::Sender<Result<A, StoreError>>;

/// Calls of one kind; clones share them.
pub(super) struct Group<C, A>(Arc<Mutex<Queue<C, A>>>);

struct Queue<C, A> {
    /// How many statements may be under way at once, and how many are.
    lanes: usize,
    running: usize,
    /// How long after one statement the next may begin, and when that is.
    apart: Duration,
    next_at: Instant,
    /// How many calls the last one took.
    took: usize,
    waiting: VecDeque<(C, Asker<A>)>,
}

/// What a lane does next.
enum Next<C, A> {
    Ask(Vec<(C, Asker<A>)>),
    Wait(Instant),
    End,
}

impl<C, A> Clone for Group<C, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C, A> Group<C, A> {
    /// With so many statements under way at once, which begin so long apart, unless calls enough for one are there before.
    pub(super) fn new(lanes: usize, apart: Duration) -> Self {
        Self(Arc::new(Mutex::new(Queue {
            lanes,
            running: 0,
            apart,
            next_at: Instant::now(),
            took: 0,
            waiting: VecDeque::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Queue<C, A>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next calls, without those that nobody waits for any more, once it is their time; without any, the lane ends.
    fn next(&self) -> Next<C, A> {
        let mut queue = self.lock();
        queue.waiting.retain(|(_, asker)| !asker.is_closed());
        if queue.waiting.is_empty() {
            queue.running -= 1;
            if queue.took == 1 {
                // It was alone, and whoever calls next, one call after the other perhaps, waits for nobody.
                queue.next_at = Instant::now();
            }
            return Next::End;
        }
        let now = Instant::now();
        if now < queue.next_at && queue.waiting.len() < MOST {
            return Next::Wait(queue.next_at);
        }
        queue.next_at = now + queue.apart;
        queue.took = queue.waiting.len().min(MOST);
        let took = queue.took;
        Next::Ask(queue.waiting.drain(..took).collect())
    }
}

impl<C: Clone + Send + 'static, A: Send + 'static> Group<C, A> {
    /// Asks together with whoever asks at this time, and waits for so long. `run` takes calls to the database and brings
    /// an answer for each, in their order; what it cannot do together it is given one by one.
    ///
    /// # Errors
    /// When the database refuses this call, or is away.
    pub(super) async fn ask<R, F>(&self, patience: Duration, call: C, run: R) -> Result<A, StoreError>
    where
        R: Fn(Vec<C>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<A>, StoreError>> + Send,
    {
        let (asker, answer) = oneshot::channel();
        let starts = {
            let mut queue = self.lock();
            queue.waiting.push_back((call, asker));
            let starts = queue.running < queue.lanes;
            queue.running += usize::from(starts);
            starts
        };
        if starts {
            // A task of its own: this caller may stop waiting, and others' calls go on.
            let group = self.clone();
            tokio::spawn(async move {
                loop {
                    match group.next() {
                        Next::Ask(calls) => {
                            // A lane that ended with a panic would never be given back.
                            if !survives(serve(&run, calls)).await {
                                tracing::error!("a statement has panicked; nobody who asked by it is answered");
                            }
                        }
                        Next::Wait(until) => tokio::time::sleep_until(until).await,
                        Next::End => return,
                    }
                }
            });
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(StoreError::Away),
        }
    }
}

/// Has calls answered, all at once or, where the database does not take them so, each by itself.
async fn serve<C, A, R, F>(run: &R, calls: Vec<(C, Asker<A>)>)
where
    C: Clone,
    R: Fn(Vec<C>) -> F,
    F: Future<Output = Result<Vec<A>, StoreError>>,
{
    let (calls, askers): (Vec<C>, Vec<Asker<A>>) = calls.into_iter().unzip();
    match run(calls.clone()).await {
        Ok(answers) => {
            for (asker, answer) in askers.into_iter().zip(answers) {
                // One that no longer waits is no fault.
                let _ = asker.send(Ok(answer));
            }
        }
        Err(error) if askers.len() == 1 => tell(askers, error),
        Err(StoreError::Apart | StoreError::Sql(sqlx::Error::Database(_))) => {
            for (call, asker) in calls.into_iter().zip(askers) {
                let answer = run(vec![call])
                    .await
                    .and_then(|answers| answers.into_iter().next().ok_or(StoreError::Away));
                let _ = asker.send(answer);
            }
        }
        // Nobody has had an answer; dropping the askers says so.
        Err(error) => tracing::debug!(%error, calls = askers.len(), "the database has not answered"),
    }
}

/// Runs a statement, whose panic is its own alone; whether it came to its end.
async fn survives(statement: impl Future<Output = ()>) -> bool {
    let mut statement = pin!(statement);
    // What a panic has dropped half-way are the statement's own values, and nobody polls it again.
    std::future::poll_fn(
        |context| match catch_unwind(AssertUnwindSafe(|| statement.as_mut().poll(context))) {
            Ok(polled) => polled.map(|()| true),
            Err(_) => Poll::Ready(false),
        },
    )
    .await
}

fn tell<A>(askers: Vec<Asker<A>>, error: StoreError) {
    if let Some(asker) = askers.into_iter().next() {
        let _ = asker.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Asks for each number at once; a statement doubles its calls, and refuses those with 13 unless it is alone.
    async fn ask_all(numbers: std::ops::Range<u32>) -> (Vec<Result<u32, StoreError>>, Vec<usize>) {
        let group = Group::<u32, u32>::new(1, Duration::ZERO);
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let asks = numbers.map(|number| {
            let (group, sizes) = (group.clone(), sizes.clone());
            tokio::spawn(async move {
                let run = move |calls: Vec<u32>| {
                    let sizes = sizes.clone();
                    async move {
                        sizes.lock().expect("not poisoned").push(calls.len());
                        // Others come meanwhile.
                        tokio::task::yield_now().await;
                        match &calls[..] {
                            [13] => Err(StoreError::Reserved("13".to_owned())),
                            several if several.contains(&13) => Err(StoreError::Apart),
                            several => Ok(several.iter().map(|call| call * 2).collect()),
                        }
                    }
                };
                group.ask(LONG, number, run).await
            })
        });
        let asks: Vec<_> = asks.collect();
        let mut answers = Vec::new();
        for ask in asks {
            answers.push(ask.await.expect("no panic"));
        }
        let sizes = sizes.lock().expect("not poisoned").clone();
        (answers, sizes)
    }

    #[tokio::test]
    async fn calls_that_come_together_share_a_statement_and_each_has_its_own_answer() {
        let (answers, sizes) = ask_all(100..300).await;
        let answers: Vec<u32> = answers.into_iter().map(Result::unwrap_or_default).collect();
        assert_eq!(answers, (100..300).map(|number| number * 2).collect::<Vec<_>>());
        assert!(sizes.len() < 20, "{sizes:?}");
        assert!(sizes.iter().all(|size| *size <= MOST), "{sizes:?}");
    }

    /// Says of each call how many went together.
    async fn count(calls: Vec<u32>) -> Result<Vec<usize>, StoreError> {
        Ok(vec![calls.len(); calls.len()])
    }

    #[tokio::test]
    async fn after_calls_that_came_together_a_statement_waits_for_those_that_come_soon() {
        const APART: Duration = Duration::from_millis(200);
        let group = Group::<u32, usize>::new(2, APART);
        let began = Instant::now();
        let (first, second) = tokio::join!(group.ask(LONG, 1, count), group.ask(LONG, 2, count));
        assert_eq!((first.ok(), second.ok()), (Some(2), Some(2)));
        let soon = async {
            tokio::time::sleep(APART / 10).await;
            group.ask(LONG, 4, count).await
        };
        let (third, fourth) = tokio::join!(group.ask(LONG, 3, count), soon);
        assert_eq!((third.ok(), fourth.ok()), (Some(2), Some(2)));
        assert!(began.elapsed() >= APART, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn calls_one_after_the_other_wait_for_nobody() {
        let group = Group::<u32, usize>::new(2, LONG * 100);
        for call in 0..9 {
            assert_eq!(group.ask(LONG, call, count).await.ok(), Some(1));
            // The lane sees that nobody waits.
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_that_is_refused_harms_no_other() {
        let (answers, _) = ask_all(0..30).await;
        for (number, answer) in answers.into_iter().enumerate() {
            match number {
                13 => assert!(matches!(answer, Err(StoreError::Reserved(_))), "{answer:?}"),
                _ => assert_eq!(answer.ok(), u32::try_from(number * 2).ok()),
            }
        }
    }

    #[tokio::test]
    async fn a_statement_that_panics_costs_its_own_calls_their_answers_and_nobody_else() {
        let group = Group::<u32, u32>::new(1, Duration::ZERO);
        let run = |calls: Vec<u32>| async move {
            // Another comes meanwhile.
            tokio::task::yield_now().await;
            assert!(!calls.contains(&13), "as a fault in the program would");
            Ok(calls)
        };
        let (unlucky, waiting) = tokio::join!(group.ask(LONG, 13, run), async {
            tokio::task::yield_now().await;
            group.ask(LONG, 1, run).await
        });
        assert!(matches!(unlucky, Err(StoreError::Away)), "{unlucky:?}");
        assert_eq!(waiting.ok(), Some(1));
        assert_eq!(group.ask(LONG, 2, run).await.ok(), Some(2));
        tokio::task::yield_now().await;
        assert_eq!(group.lock().running, 0);
    }

    #[tokio::test]
    async fn one_that_stops_waiting_is_not_asked_for_and_the_next_is_answered() {
        let group = Group::<u32, u32>::new(1, Duration::ZERO);
        let slow = |calls: Vec<u32>| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(calls)
        };
        let (first, given_up, last) = tokio::join!(
            group.ask(LONG, 1, slow),
            group.ask(Duration::from_millis(1), 2, |_| async {
                panic!("the first one's lane asks")
            }),
            async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                group.ask(LONG, 3, slow).await
            },
        );
        assert_eq!((first.ok(), last.ok()), (Some(1), Some(3)));
        assert!(matches!(given_up, Err(StoreError::Away)));
        tokio::task::yield_now().await;
        assert_eq!(group.lock().running, 0);
    }
}
