//! Named tasks with an owner: none of them dies in silence.
//!
//! Owns: what a task's panic or end means. An *essential* task runs until shutdown: if it panics or ends before, the process
//! cannot do its work any longer, and says so and ends, as upstream's do at a panic in any goroutine
//! (`k8s.io/apimachinery/pkg/util/runtime.HandleCrash`). A *guarded* one may end, and only its panic ends the process.
//! A *helper* does one thing of many (a connection, a pod's clean-up); its panic is an error in the log, by name.
//!
//! ```text
//! essential ends -> Shutdown keeps the first TaskError and triggers -> supervise() gives the main work its grace -> Err(TaskError)
//! ```

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::task::JoinHandle;

use crate::shutdown::Shutdown;
pub use crate::shutdown::TaskError;

/// How long the rest of the process has to end once an essential task failed.
const GRACE: Duration = Duration::from_secs(5);
/// How long a shutdown takes at most to reach all tokens.
const SPREAD: Duration = Duration::from_secs(1);

impl Shutdown {
    /// Runs `future` until shutdown (this token's). Its panic, or its end before, ends the process.
    pub fn spawn_essential<F>(&self, name: impl Into<String>, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.essential(name.into(), future))
    }

    /// As [`Shutdown::spawn_essential`], for whoever spawns it himself.
    pub fn essential<F, N>(&self, name: N, future: F) -> impl Future<Output = ()> + Send + use<F, N>
    where
        F: Future<Output = ()> + Send + 'static,
        N: Into<String>,
    {
        let (name, shutdown) = (name.into(), self.clone());
        async move {
            if !shutdown.survives(&name, future).await {
                return;
            }
            // It may have seen a shutdown that reaches this token a moment later.
            let told = tokio::time::timeout(SPREAD, shutdown.triggered());
            if told.await.is_err() {
                shutdown.fail(TaskError::Ended { name });
            }
        }
    }

    /// Runs `future`, which may end at any time; its panic ends the process.
    pub fn spawn_guarded<F>(&self, name: impl Into<String>, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.guarded(name.into(), future))
    }

    /// As [`Shutdown::spawn_guarded`], for whoever spawns it himself.
    pub fn guarded<F, N>(&self, name: N, future: F) -> impl Future<Output = ()> + Send + use<F, N>
    where
        F: Future<Output = ()> + Send + 'static,
        N: Into<String>,
    {
        let (name, shutdown) = (name.into(), self.clone());
        async move {
            shutdown.survives(&name, future).await;
        }
    }

    /// Whether it ended without a panic.
    async fn survives(&self, name: &str, future: impl Future<Output = ()>) -> bool {
        let outcome = AssertUnwindSafe(future).catch_unwind().await;
        if let Err(panic) = &outcome {
            self.fail(TaskError::Panicked {
                name: name.to_owned(),
                message: message(panic.as_ref()),
            });
        }
        outcome.is_ok()
    }

    /// Runs the main work of a process to its end. If an essential task fails meanwhile, the work has seconds to end, and the
    /// failure is what remains.
    ///
    /// # Errors
    /// The work's own, or the [`TaskError`].
    pub async fn supervise<T, E: From<TaskError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.supervise_with(GRACE, work).await
    }

    async fn supervise_with<T, E: From<TaskError>>(
        &self,
        grace: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let late = async {
            self.root_triggered().await;
            if self.failed().is_none() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(grace).await;
        };
        let outcome = tokio::select! {
            outcome = work => Some(outcome),
            () = late => None,
        };
        match (self.failed(), outcome) {
            (None, Some(outcome)) => outcome,
            (Some(error), _) => Err(error.into()),
            (None, None) => unreachable!("late ends only after a failure"),
        }
    }
}

/// Runs what a library cannot do without, where no [`Shutdown`] is at hand: its panic ends the process, if the process is one that
/// [`Shutdown::on_signals`] watches over; otherwise (in tests) it is told.
pub fn spawn_vital<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(vital(name, future))
}

/// As [`spawn_vital`], for whoever spawns it himself.
pub async fn vital(name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
    match Shutdown::of_process() {
        Some(shutdown) => shutdown.guarded(name, future).await,
        None => helper(name, future).await,
    }
}

/// Runs `future` beside the others. It may end; its panic is told by name.
pub fn spawn_helper<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(helper(name, future))
}

/// Runs `future` apart from whoever waits for its answer, who may leave meanwhile; its panic is an error of the answer.
pub fn spawn_answer<T, F>(future: F) -> JoinHandle<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    tokio::spawn(future)
}

async fn helper(name: &'static str, future: impl Future<Output = ()>) {
    if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
        tracing::error!(
            task = name,
            panic = message(panic.as_ref()),
            "A task panicked"
        );
    }
}

/// The words of a panic.
pub fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "no message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, thiserror::Error)]
    enum AppError {
        #[error(transparent)]
        Task(#[from] TaskError),
        #[error("own")]
        Own,
    }

    async fn until_shutdown(shutdown: Shutdown) -> Result<&'static str, AppError> {
        shutdown.triggered().await;
        Ok("ended in good order")
    }

    #[tokio::test]
    async fn a_panic_of_an_essential_task_ends_the_process_with_its_words() {
        let shutdown = Shutdown::new();
        shutdown.spawn_essential("status writer", async { panic!("no {}", "luck") });
        let outcome = shutdown.supervise(until_shutdown(shutdown.clone())).await;
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "the task \"status writer\" panicked: no luck"
        );
        // Also when the rest does not heed the shutdown.
        let stuck = std::future::pending::<Result<(), AppError>>();
        let grace = Duration::from_millis(20);
        assert!(shutdown.supervise_with(grace, stuck).await.is_err());
    }

    #[tokio::test]
    async fn an_end_before_shutdown_is_a_failure_and_afterwards_is_none() {
        let shutdown = Shutdown::new();
        let leading = shutdown.child();
        let task = leading.spawn_essential("controller", {
            let leading = leading.clone();
            async move { leading.triggered().await }
        });
        leading.spawn_guarded("reader", async {}).await.unwrap();
        // What ends with its own token is no failure of the process.
        leading.trigger();
        task.await.unwrap();
        assert_eq!(shutdown.failed(), None);
        assert!(!shutdown.is_triggered());

        let child = shutdown.child();
        child.spawn_essential("lease", async {});
        let outcome = shutdown.supervise(until_shutdown(shutdown.clone())).await;
        let name = "lease".to_owned();
        assert_eq!(outcome, Err(TaskError::Ended { name }.into()));
        assert!(
            shutdown.is_triggered(),
            "the failure of a child is the process's"
        );
    }

    #[tokio::test]
    async fn without_a_failure_the_work_s_outcome_stands() {
        let shutdown = Shutdown::new();
        spawn_helper("one of many", async { panic!("told, no more") });
        tokio::task::yield_now().await;
        let work = async { Err::<(), _>(AppError::Own) };
        assert_eq!(shutdown.supervise(work).await, Err(AppError::Own));
        shutdown.trigger();
        assert!(
            shutdown
                .supervise(until_shutdown(shutdown.clone()))
                .await
                .is_ok()
        );
    }
}
