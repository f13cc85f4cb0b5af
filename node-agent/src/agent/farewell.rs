//! The last messages of an agent that stops.

use tokio::sync::mpsc;
use toll_protocol::message::FromAgent;

use crate::outbox::Outbox;
use crate::transport::TransportEvent;

/// Hands what is still to be said to the transport, as long as it takes it. A message leaves the outbox only once there is
/// room for it: an event that comes while the transport has none must not take a result along.
pub(super) async fn say_the_last(
    outbox: &mut Outbox,
    to_link: &mpsc::Sender<FromAgent>,
    from_transport: &mut mpsc::Receiver<TransportEvent>,
) {
    while outbox.is_ready() {
        tokio::select! {
            permit = to_link.reserve() => match (permit, outbox.pop()) {
                (Ok(permit), Some(message)) => permit.send(message),
                _ => break,
            },
            event = from_transport.recv() => match event {
                // Whatever else the orchestrator wants comes too late.
                Some(TransportEvent::Message(_) | TransportEvent::Connected(_) | TransportEvent::HelloWanted(_)) => {}
                Some(TransportEvent::Lost(_) | TransportEvent::NotConnected(_)) | None => break,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use toll_protocol::message::ToAgent;
    use toll_protocol::report::Failure;
    use toll_protocol::trial::TrialId;

    use super::*;

    #[tokio::test]
    async fn an_event_of_the_link_takes_no_message_along() {
        let outcome = |n| FromAgent::Failed { trial: TrialId::new(n), failure: Failure::new("model") };
        let mut outbox = Outbox::default();
        outbox.connected();
        let (to_link, mut transport) = mpsc::channel(1);
        let (events, mut from_transport) = mpsc::channel(8);
        // The transport is full and has things to tell.
        to_link.try_send(outcome(0)).expect("room for one");
        for n in 1..=3 {
            outbox.push(outcome(n));
            let event = TransportEvent::Message(ToAgent::Teardown { trial: TrialId::new(n) });
            events.try_send(event).expect("room");
        }
        let farewell = say_the_last(&mut outbox, &to_link, &mut from_transport);
        tokio::pin!(farewell);
        // It has read all that the transport had to tell, and waits for room.
        std::future::poll_fn(|context| {
            assert!(farewell.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        let mut said = Vec::new();
        let hears = async {
            while said.len() < 4 {
                said.extend(transport.recv().await);
            }
        };
        tokio::join!(farewell, hears);
        assert_eq!(said, [0, 1, 2, 3].map(outcome));
    }
}
