package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/dynamic-resource-allocation/cel"
	resourceslicetracker "k8s.io/dynamic-resource-allocation/resourceslice/tracker"
	"k8s.io/dynamic-resource-allocation/structured"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/dynamicresources"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/util/assumecache"
)

const (
	gpuDriver = "gpu.example.com"
	nicDriver = "nic.example.com"
)

// searchTimeout is for the search on one node: some questions take for ever.
const searchTimeout = time.Second

// errTooHard is told of a question that took longer; another is asked instead.
var errTooHard = errors.New("the search takes too long")

// deviceObjects are what a case has of devices, each with its kind.
func (v *verdicts) deviceObjects() []runtime.Object {
	var objects []runtime.Object
	for _, o := range v.Slices {
		objects = append(objects, o)
	}
	for _, o := range v.Classes {
		objects = append(objects, o)
	}
	for _, o := range v.Claims {
		objects = append(objects, o)
	}
	for _, o := range v.TaintRules {
		objects = append(objects, o)
	}
	return objects
}

func newDRAManager(ctx context.Context, client kubernetes.Interface, factory informers.SharedInformerFactory) (fwk.SharedDRAManager, func(v *verdicts) error, error) {
	claims := assumecache.NewAssumeCache(klog.FromContext(ctx), factory.Resource().V1().ResourceClaims().Informer(), "ResourceClaim", "", nil)
	tracker, err := resourceslicetracker.StartTracker(ctx, resourceslicetracker.Options{
		EnableDeviceTaintRules:   true,
		EnableConsumableCapacity: true,
		SliceInformer:            factory.Resource().V1().ResourceSlices(),
		TaintInformer:            factory.Resource().V1().DeviceTaintRules(),
		KubeClient:               client,
	})
	if err != nil {
		return nil, nil, err
	}
	manager := dynamicresources.NewDRAManager(ctx, claims, tracker, factory)
	resolver := manager.DeviceClassResolver().(cache.ResourceEventHandler)
	if _, err := factory.Resource().V1().DeviceClasses().Informer().AddEventHandler(resolver); err != nil {
		return nil, nil, err
	}
	// The informers have synced when the caches behind them have not yet.
	wait := func(v *verdicts) error {
		for range 2000 {
			known, _ := manager.ResourceClaims().List()
			slices, _ := manager.ResourceSlices().ListWithDeviceTaintRules()
			classes := 0
			for _, class := range v.Classes {
				if manager.DeviceClassResolver().GetDeviceClass(v1.ResourceName(resourceapi.ResourceDeviceClassPrefix+class.Name)) != nil {
					classes++
				}
			}
			if len(known) == len(v.Claims) && len(slices) == len(v.Slices) && classes == len(v.Classes) && tracker.HasSynced() {
				return nil
			}
			time.Sleep(time.Millisecond)
		}
		return errors.New("the caches do not fill")
	}
	return manager, wait, nil
}

// choose asks the allocator itself about every node: what each claim gets.
func choose(ctx context.Context, manager fwk.SharedDRAManager, v *verdicts) error {
	v.Chosen = map[string][][]string{}
	var claims []*resourceapi.ResourceClaim
	for _, entry := range v.Pod.Spec.ResourceClaims {
		claim, err := manager.ResourceClaims().Get(v.Pod.Namespace, *entry.ResourceClaimName)
		if err != nil {
			return err
		}
		if claim.Status.Allocation == nil {
			claims = append(claims, claim)
		}
	}
	state, err := manager.ResourceClaims().GatherAllocatedState()
	if err != nil {
		return err
	}
	slices, err := manager.ResourceSlices().ListWithDeviceTaintRules()
	if err != nil {
		return err
	}
	features := dynamicresources.AllocatorFeatures(feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate))
	allocator, err := structured.NewAllocator(ctx, features, *state, manager.DeviceClasses(), slices, cel.NewCache(10, cel.Features{EnableConsumableCapacity: true}))
	if err != nil {
		return err
	}
	for _, node := range v.Nodes {
		limited, cancel := context.WithTimeout(ctx, searchTimeout)
		results, err := allocator.Allocate(limited, node, claims)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return errTooHard
		}
		if err != nil || (results == nil && len(claims) > 0) {
			continue
		}
		all := [][]string{}
		for _, result := range results {
			devices := []string{}
			for _, d := range result.Devices.Results {
				text := fmt.Sprintf("%s=%s/%s/%s", d.Request, d.Driver, d.Pool, d.Device)
				for _, name := range []resourceapi.QualifiedName{"lanes", "memory"} {
					if q, ok := d.ConsumedCapacity[name]; ok {
						text += fmt.Sprintf(" %s:%s", name, q.String())
					}
				}
				devices = append(devices, text)
			}
			devices = append(devices, fmt.Sprintf("selector:%v", result.NodeSelector != nil))
			all = append(all, devices)
		}
		v.Chosen[node.Name] = all
	}
	return nil
}

func (s *source) quantity(from ...string) resource.Quantity {
	return resource.MustParse(s.pick(from...))
}

func (s *source) attributes() map[resourceapi.QualifiedName]resourceapi.DeviceAttribute {
	of := map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{}
	text := func(v string) *string { return &v }
	if s.Intn(8) > 0 {
		of["model"] = resourceapi.DeviceAttribute{StringValue: text(s.pick("a", "b", "c"))}
	}
	if s.Intn(6) > 0 {
		numa := int64(s.Intn(2))
		of["numa"] = resourceapi.DeviceAttribute{IntValue: &numa}
	}
	if s.oneIn(2) {
		healthy := s.Intn(4) > 0
		of["healthy"] = resourceapi.DeviceAttribute{BoolValue: &healthy}
	}
	if s.oneIn(2) {
		of["firmware"] = resourceapi.DeviceAttribute{VersionValue: text(s.pick("1.9.0", "1.10.0", "2.0.0-rc.1", "2.0.0"))}
	}
	if s.oneIn(3) {
		of["topology.example.com/switch"] = resourceapi.DeviceAttribute{StringValue: text(s.pick("s1", "s2"))}
	}
	return of
}

func (s *source) capacity() map[resourceapi.QualifiedName]resourceapi.DeviceCapacity {
	of := map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{}
	if s.Intn(4) > 0 {
		of["memory"] = resourceapi.DeviceCapacity{Value: s.quantity("10Gi", "20Gi", "40Gi")}
	}
	if s.oneIn(3) {
		of["lanes"] = resourceapi.DeviceCapacity{Value: s.quantity("8", "16", "2500m")}
	}
	return of
}

func (s *source) policy() *resourceapi.CapacityRequestPolicy {
	quantity := func(from ...string) *resource.Quantity {
		q := s.quantity(from...)
		return &q
	}
	switch s.Intn(4) {
	case 0:
		return &resourceapi.CapacityRequestPolicy{Default: quantity("2Gi"), ValidValues: []resource.Quantity{resource.MustParse("2Gi"), resource.MustParse("4Gi"), resource.MustParse("9Gi")}}
	case 1:
		return &resourceapi.CapacityRequestPolicy{Default: quantity("1Gi"), ValidRange: &resourceapi.CapacityRequestPolicyRange{Min: quantity("1Gi"), Max: quantity("8Gi", "16Gi"), Step: quantity("1Gi", "512Mi", "3")}}
	case 2:
		return &resourceapi.CapacityRequestPolicy{Default: quantity("2Gi"), ValidRange: &resourceapi.CapacityRequestPolicyRange{Min: quantity("1Gi", "2Gi")}}
	default:
		return nil
	}
}

func (s *source) deviceTaint() resourceapi.DeviceTaint {
	effect := resourceapi.DeviceTaintEffect(s.pick("NoSchedule", "NoExecute", "None"))
	return resourceapi.DeviceTaint{Key: s.pick("k1", "k2"), Value: s.pick("", "v"), Effect: effect}
}

func (s *source) zoneSelector() *v1.NodeSelector {
	requirement := v1.NodeSelectorRequirement{Key: v1.LabelTopologyZone, Operator: v1.NodeSelectorOpIn, Values: []string{s.pick("z1", "z2", "z3")}}
	return &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{requirement}}}}
}

func (s *source) device(i int, counters bool) resourceapi.Device {
	d := resourceapi.Device{Name: fmt.Sprintf("d%d", i), Attributes: s.attributes(), Capacity: s.capacity()}
	if s.oneIn(6) {
		d.Taints = append(d.Taints, s.deviceTaint())
	}
	if s.oneIn(3) {
		many := true
		d.AllowMultipleAllocations = &many
		if memory, ok := d.Capacity["memory"]; ok {
			memory.RequestPolicy = s.policy()
			d.Capacity["memory"] = memory
		}
	}
	if counters && s.Intn(4) > 0 {
		d.ConsumesCounters = []resourceapi.DeviceCounterConsumption{{
			CounterSet: s.pick("set1", "set2"), Counters: map[string]resourceapi.Counter{"slices": {Value: s.quantity("1", "2", "3", "4")}},
		}}
	}
	if s.oneIn(12) {
		d.BindingConditions, d.BindingFailureConditions = []string{"ready"}, []string{"failed"}
	}
	return d
}

// pool makes the slices of a pool somewhere, now and then old or incomplete ones.
func (s *source) pool(v *verdicts, number int, driver string) {
	name := fmt.Sprintf("pool-%d", number)
	node := v.Nodes[s.Intn(len(v.Nodes))].Name
	place := s.Intn(6)
	parts := 1 + s.Intn(2)
	counters := s.oneIn(3)
	count := parts
	if counters {
		count++
	}
	spec := func() resourceapi.ResourceSliceSpec {
		spec := resourceapi.ResourceSliceSpec{Driver: driver, Pool: resourceapi.ResourcePool{Name: name, Generation: 2, ResourceSliceCount: int64(count)}}
		yes := true
		switch place {
		case 0:
			spec.AllNodes = &yes
		case 1:
			spec.NodeSelector = s.zoneSelector()
		case 2:
			spec.PerDeviceNodeSelection = &yes
		default:
			spec.NodeName = &node
		}
		return spec
	}
	add := func(suffix string, spec resourceapi.ResourceSliceSpec) {
		slice := &resourceapi.ResourceSlice{TypeMeta: kind("ResourceSlice"), ObjectMeta: metav1.ObjectMeta{Name: name + "-" + suffix}, Spec: spec}
		v.Slices = append(v.Slices, slice)
	}
	devices := 0
	for part := range parts {
		spec := spec()
		for range 2 + s.Intn(5) {
			d := s.device(devices, counters)
			if place == 2 {
				yes := true
				switch s.Intn(3) {
				case 0:
					d.AllNodes = &yes
				case 1:
					d.NodeSelector = s.zoneSelector()
				default:
					d.NodeName = &v.Nodes[s.Intn(len(v.Nodes))].Name
				}
			}
			devices++
			spec.Devices = append(spec.Devices, d)
		}
		switch {
		case s.oneIn(20):
			spec.Pool.Generation = 1
		case s.oneIn(25):
			spec.Pool.Generation = 3
		case s.oneIn(25):
			spec.Devices = append(spec.Devices, spec.Devices[0])
		}
		if !s.oneIn(25) {
			add(fmt.Sprintf("s%d", part), spec)
		}
	}
	if counters && !s.oneIn(12) {
		spec := spec()
		set := func(name string) resourceapi.CounterSet {
			return resourceapi.CounterSet{Name: name, Counters: map[string]resourceapi.Counter{"slices": {Value: s.quantity("3", "4", "6")}}}
		}
		spec.SharedCounters = []resourceapi.CounterSet{set("set1"), set("set2")}
		add("counters", spec)
	}
}

func (s *source) expression(driver string) string {
	attribute := func(name string) string { return fmt.Sprintf("device.attributes['%s'].%s", driver, name) }
	optional := func(name, otherwise string) string {
		return fmt.Sprintf("device.attributes['%s'].?%s.orValue(%s)", driver, name, otherwise)
	}
	has := func(name string) string { return "has(" + attribute(name) + ")" }
	switch s.Intn(12) {
	case 0:
		return has("model") + " && " + attribute("model") + " == '" + s.pick("a", "b") + "'"
	case 1:
		return optional("model", "'c'") + " in ['a', 'b']"
	case 2:
		return optional("numa", "7") + " <= " + s.pick("0", "1")
	case 3:
		return has("healthy") + " ? " + attribute("healthy") + " : " + s.pick("true", "false")
	case 4:
		return has("firmware") + " && " + attribute("firmware") + ".isGreaterThan(semver('1.9.5'))"
	case 5:
		return fmt.Sprintf("'memory' in device.capacity['%s'] && device.capacity['%s'].memory.compareTo(quantity('%s')) >= 0", driver, driver, s.pick("10Gi", "15Gi"))
	case 6:
		return "device.attributes['topology.example.com'].?switch.orValue('s2') == '" + s.pick("s1", "s2") + "'"
	case 7:
		return "device.allowMultipleAllocations == " + s.pick("true", "false")
	case 8:
		return fmt.Sprintf("cel.bind(d, device.attributes['%s'], size(d) > %s)", driver, s.pick("1", "2", "3"))
	case 9:
		return "device.driver.startsWith('" + s.pick("gpu", "nic", "") + "')"
	case 10:
		// Fails where there is none.
		if s.oneIn(6) {
			return attribute("model") + " != 'a'"
		}
		return "!" + has("model") + " || " + attribute("model") + ".matches('^[ab]$')"
	default:
		return fmt.Sprintf("device.attributes['%s'].exists(k, k == '%s')", driver, s.pick("numa", "healthy"))
	}
}

func (s *source) deviceSelectors(class string, often int) []resourceapi.DeviceSelector {
	driver := gpuDriver
	if class == "nic" {
		driver = nicDriver
	}
	if !s.oneIn(often) {
		return nil
	}
	return []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: s.expression(driver)}}}
}

func (s *source) deviceTolerations() []resourceapi.DeviceToleration {
	if !s.oneIn(4) {
		return nil
	}
	operator := resourceapi.DeviceTolerationOperator(s.pick("Exists", "Equal"))
	return []resourceapi.DeviceToleration{{Key: s.pick("k1", "k2"), Operator: operator, Value: s.pick("", "v"), Effect: resourceapi.DeviceTaintEffect(s.pick("", "NoSchedule"))}}
}

func (s *source) capacityRequests() *resourceapi.CapacityRequirements {
	if !s.oneIn(4) {
		return nil
	}
	requests := map[resourceapi.QualifiedName]resource.Quantity{}
	if s.Intn(5) > 0 {
		requests["memory"] = s.quantity("1Gi", "3Gi", "5Gi", "1500Mi", "11Gi")
	}
	if s.oneIn(5) {
		requests["lanes"] = s.quantity("1", "500m", "4")
	}
	return &resourceapi.CapacityRequirements{Requests: requests}
}

func (s *source) class() string { return s.pick("gpu", "gpu", "gpu-a", "nic") }

func (s *source) deviceRequest(i int) resourceapi.DeviceRequest {
	r := resourceapi.DeviceRequest{Name: fmt.Sprintf("r%d", i)}
	mode := func() (resourceapi.DeviceAllocationMode, int64) {
		if s.oneIn(9) {
			return resourceapi.DeviceAllocationModeAll, 0
		}
		return resourceapi.DeviceAllocationModeExactCount, []int64{1, 1, 1, 2, 2, 3}[s.Intn(6)]
	}
	if s.oneIn(4) {
		for j := range 1 + s.Intn(3) {
			class := s.class()
			m, count := mode()
			r.FirstAvailable = append(r.FirstAvailable, resourceapi.DeviceSubRequest{
				Name: fmt.Sprintf("s%d", j), DeviceClassName: class, AllocationMode: m, Count: count,
				Selectors: s.deviceSelectors(class, 3), Tolerations: s.deviceTolerations(), Capacity: s.capacityRequests(),
			})
		}
		return r
	}
	class := s.class()
	m, count := mode()
	r.Exactly = &resourceapi.ExactDeviceRequest{
		DeviceClassName: class, AllocationMode: m, Count: count, Selectors: s.deviceSelectors(class, 3),
		Tolerations: s.deviceTolerations(), Capacity: s.capacityRequests(),
	}
	if s.oneIn(10) {
		admin := s.oneIn(2)
		r.Exactly.AdminAccess = &admin
	}
	return r
}

func kind(name string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: name}
}

func (s *source) resourceClaim(name string) *resourceapi.ResourceClaim {
	claim := &resourceapi.ResourceClaim{TypeMeta: kind("ResourceClaim"), ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)}}
	for i := range []int{1, 1, 1, 2, 2, 3}[s.Intn(6)] {
		claim.Spec.Devices.Requests = append(claim.Spec.Devices.Requests, s.deviceRequest(i))
	}
	if s.oneIn(3) {
		name := resourceapi.FullyQualifiedName(s.pick(gpuDriver+"/numa", gpuDriver+"/model", "topology.example.com/switch", nicDriver+"/numa"))
		constraint := resourceapi.DeviceConstraint{}
		if s.oneIn(3) {
			constraint.DistinctAttribute = &name
		} else {
			constraint.MatchAttribute = &name
		}
		if s.oneIn(2) {
			constraint.Requests = []string{s.pick("r0", "r1", "r0/s1")}
		}
		claim.Spec.Devices.Constraints = append(claim.Spec.Devices.Constraints, constraint)
	}
	return claim
}

// taken is a claim that has some device.
func (s *source) taken(v *verdicts, i int) {
	slice := v.Slices[s.Intn(len(v.Slices))]
	if len(slice.Spec.Devices) == 0 {
		return
	}
	device := slice.Spec.Devices[s.Intn(len(slice.Spec.Devices))]
	result := resourceapi.DeviceRequestAllocationResult{Request: "r0", Driver: slice.Spec.Driver, Pool: slice.Spec.Pool.Name, Device: device.Name}
	if device.AllowMultipleAllocations != nil {
		id := types.UID(fmt.Sprintf("share-%d", i))
		result.ShareID = &id
		if s.Intn(4) > 0 {
			result.ConsumedCapacity = map[resourceapi.QualifiedName]resource.Quantity{"memory": s.quantity("1Gi", "4Gi", "9Gi")}
		}
	}
	if s.oneIn(8) {
		admin := true
		result.AdminAccess = &admin
	}
	claim := s.resourceClaim(fmt.Sprintf("taken-%d", i))
	claim.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{result}}}
	v.Claims = append(v.Claims, claim)
}

// deviceQuestion is about devices alone.
func deviceQuestion(s *source) *verdicts {
	v := &verdicts{Namespaces: []*v1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "default"}}}}
	for i := range 3 + s.Intn(3) {
		node := s.node(i)
		node.Spec = v1.NodeSpec{}
		v.Nodes = append(v.Nodes, node)
	}
	expression := func(text string) []resourceapi.DeviceSelector {
		return []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: text}}}
	}
	class := func(name, text string) {
		v.Classes = append(v.Classes, &resourceapi.DeviceClass{TypeMeta: kind("DeviceClass"), ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourceapi.DeviceClassSpec{Selectors: expression(text)}})
	}
	class("gpu", "device.driver == '"+gpuDriver+"'")
	class("gpu-a", "device.driver == '"+gpuDriver+"' && device.attributes['"+gpuDriver+"'].?model.orValue('') == 'a'")
	class("nic", "device.driver == '"+nicDriver+"'")
	extended := s.oneIn(4)
	if extended {
		name := s.pick("example.com/gpu", "example.com/gpu", "example.com/other")
		v.Classes[s.Intn(2)].Spec.ExtendedResourceName = &name
	}
	for i := range 3 + s.Intn(6) {
		s.pool(v, i, s.pick(gpuDriver, gpuDriver, nicDriver))
	}
	if len(v.Slices) > 0 {
		for i := range s.Intn(6) {
			s.taken(v, i)
		}
	}
	if s.oneIn(6) {
		driver, pool := s.pick(gpuDriver, nicDriver), fmt.Sprintf("pool-%d", s.Intn(3))
		v.TaintRules = append(v.TaintRules, &resourceapi.DeviceTaintRule{TypeMeta: kind("DeviceTaintRule"), ObjectMeta: metav1.ObjectMeta{Name: "rule"}, Spec: resourceapi.DeviceTaintRuleSpec{
			DeviceSelector: &resourceapi.DeviceTaintSelector{Driver: &driver, Pool: &pool}, Taint: s.deviceTaint(),
		}})
	}
	v.Pod = &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod", Namespace: "default", UID: "pod"},
		Spec:       v1.PodSpec{SchedulerName: v1.DefaultSchedulerName, Containers: []v1.Container{{Name: "c", Image: "i"}}},
	}
	claims := 1 + s.Intn(2)
	if extended {
		// Some nodes have device plugins for the first of them.
		resources := v1.ResourceList{v1.ResourceName(s.pick("example.com/gpu", "example.com/gpu", "deviceclass.resource.kubernetes.io/nic")): s.quantity("1", "1", "2")}
		v.Pod.Spec.Containers[0].Resources.Requests = resources
		if s.oneIn(3) {
			v.Pod.Spec.InitContainers = []v1.Container{{Name: "i", Image: "i", Resources: v1.ResourceRequirements{Requests: resources}}}
		}
		claims = s.Intn(2)
	}
	for i := range claims {
		name := fmt.Sprintf("claim-%d", i)
		claim := s.resourceClaim(name)
		if s.oneIn(8) {
			node := v.Nodes[s.Intn(len(v.Nodes))].Name
			claim.Status.Allocation = &resourceapi.AllocationResult{NodeSelector: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
				MatchFields: []v1.NodeSelectorRequirement{{Key: "metadata.name", Operator: v1.NodeSelectorOpIn, Values: []string{node}}},
			}}}}
		}
		v.Claims = append(v.Claims, claim)
		v.Pod.Spec.ResourceClaims = append(v.Pod.Spec.ResourceClaims, v1.PodResourceClaim{Name: name, ResourceClaimName: &name})
	}
	return v
}
