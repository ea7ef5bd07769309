//! Limits of a pod's bandwidth: a token bucket at the sending end of either side of its veth pair.
//!
//! Upstream: the CNI bandwidth plugin, which needs an ifb device for the way out; a bucket inside the pod's
//! namespace does the same, and a pod without CAP_NET_ADMIN cannot change it.

use futures::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use crate::NetworkError;

// linux/pkt_sched.h
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// What may pass at once: at least this, or a tenth of a second's worth. Below a full segment of the largest
/// size (64 KiB with offloading) nothing would pass at all.
const MINIMAL_BURST_BYTES: u64 = 128 * 1024;
/// As the CNI plugin's: a packet waits at most this long.
const LATENCY_MILLISECONDS: u64 = 25;

/// Limits what is sent out of the link.
pub async fn limit(
    mut handle: Handle,
    index: u32,
    bits_per_second: u64,
) -> Result<(), NetworkError> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).expect("link indexes are small");
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    let options = options(bits_per_second)
        .into_iter()
        .map(TcOption::Other)
        .collect();
    message.attributes = vec![
        TcAttribute::Kind("tbf".into()),
        TcAttribute::Options(options),
    ];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let context = || format!("limit link {index} to {bits_per_second} bit/s");
    let mut answers = handle
        .request(request)
        .map_err(|e| NetworkError::netlink(context(), e))?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(message) = answer.payload
            && message.raw_code() != 0
        {
            return Err(NetworkError::netlink(
                context(),
                rtnetlink::Error::NetlinkError(message),
            ));
        }
    }
    Ok(())
}

fn options(bits_per_second: u64) -> Vec<DefaultNla> {
    let rate = (bits_per_second / 8).max(1);
    let burst = (rate / 10).clamp(MINIMAL_BURST_BYTES, u64::from(u32::MAX) / 2);
    let limit = rate.saturating_mul(LATENCY_MILLISECONDS) / 1000 + burst;
    let clamp = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);

    // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
    let ratespec = |rate: u64| {
        let mut bytes = vec![0u8, TC_LINKLAYER_ETHERNET];
        bytes.extend([0u8; 6]);
        bytes.extend(clamp(rate).to_ne_bytes());
        bytes
    };
    // struct tc_tbf_qopt: rate, peakrate, limit, buffer, mtu.
    let mut parameters = ratespec(rate);
    parameters.extend([0u8; 12]);
    parameters.extend(clamp(limit).to_ne_bytes());
    parameters.extend([0u8; 8]);
    vec![
        DefaultNla::new(TCA_TBF_PARMS, parameters),
        DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()),
        DefaultNla::new(TCA_TBF_BURST, clamp(burst).to_ne_bytes().to_vec()),
    ]
}
