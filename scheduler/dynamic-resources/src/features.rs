//! [`Features`]: which parts of Dynamic Resource Allocation are on.

/// The gates that change what the allocator and the scheduler do. Named after upstream's gates, without their prefix `DRA`.
///
/// Locked on in 1.37, and so not here: admin access, extended resources, prioritized lists, device status. Off by default and not built:
/// compatibility groups, derived attributes, attributes of several values, node-allocatable resources, optional node operations, claims of pod groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// `DRAConsumableCapacity`: devices that several claims share by the capacity they take.
    pub consumable_capacity: bool,
    /// `DRADeviceBindingConditions`: devices that have to be made ready before the pod is bound.
    pub device_binding_conditions: bool,
    /// `DRADeviceTaints`.
    pub device_taints: bool,
    /// `DRADeviceTaintRules`: taints that an administrator puts on.
    pub device_taint_rules: bool,
    /// `DRAFractionalCapacityRange`: ranges of capacity finer than whole units.
    pub fractional_capacity_range: bool,
    /// `DRAPartitionableDevices`: devices that draw from common counters.
    pub partitionable_devices: bool,
    /// `DRASchedulerFilterTimeout`: a search ends after `filterTimeout`.
    pub scheduler_filter_timeout: bool,
}

impl Default for Features {
    fn default() -> Self {
        Features {
            consumable_capacity: true,
            device_binding_conditions: true,
            device_taints: true,
            device_taint_rules: true,
            fractional_capacity_range: true,
            partitionable_devices: true,
            scheduler_filter_timeout: true,
        }
    }
}
