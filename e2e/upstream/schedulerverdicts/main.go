// Command schedulerverdicts asks upstream's scheduling plugins about random
// clusters and prints questions and answers as JSON: which nodes each pod may
// not go to and why, and what each plugin scores the others. Gantry's plugins
// are tested to give the same answers (scheduler/plugins/testdata).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2"
	configv1 "k8s.io/kube-scheduler/config/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	internalcache "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
)

// Question and answer.
type verdicts struct {
	Namespaces  []*v1.Namespace      `json:"namespaces"`
	Services    []*v1.Service        `json:"services"`
	ReplicaSets []*appsv1.ReplicaSet `json:"replicaSets"`
	Nodes       []*v1.Node           `json:"nodes"`
	Pods        []*v1.Pod            `json:"pods"`
	Pod         *v1.Pod              `json:"pod"`

	Slices     []*resourceapi.ResourceSlice   `json:"slices,omitempty"`
	Classes    []*resourceapi.DeviceClass     `json:"classes,omitempty"`
	Claims     []*resourceapi.ResourceClaim   `json:"claims,omitempty"`
	TaintRules []*resourceapi.DeviceTaintRule `json:"taintRules,omitempty"`
	// By node, for each claim that is to be allocated: what it gets.
	Chosen map[string][][]string `json:"chosen,omitempty"`

	PreFilter *status                     `json:"preFilter,omitempty"`
	Rejected  map[string]status           `json:"rejected"`
	Scores    map[string]map[string]int64 `json:"scores"`
}

type status struct {
	Plugin  string   `json:"plugin"`
	Code    string   `json:"code"`
	Reasons []string `json:"reasons"`
}

func main() {
	cases := flag.Int("cases", 60, "how many clusters")
	seed := flag.Int64("seed", 1, "what they grow from")
	devices := flag.Bool("devices", false, "clusters with devices and pods with claims to them, and nothing else")
	flag.Parse()
	klog.SetLogger(klog.Logger{})
	metrics.Register()
	random := rand.New(rand.NewSource(*seed))
	all := make([]*verdicts, 0, *cases)
	ask := question
	if *devices {
		ask = deviceQuestion
	}
	fmt.Fprintf(os.Stderr, "schedulerverdicts: %d cases, seed %d\n", *cases, *seed)
	for len(all) < *cases {
		v := ask(&source{random})
		err := answer(v)
		if errors.Is(err, errTooHard) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "schedulerverdicts:", err)
			os.Exit(1)
		}
		all = append(all, v)
	}
	fmt.Println("[")
	for i, v := range all {
		text, err := compact(v)
		if err != nil {
			panic(err)
		}
		end := ","
		if i == len(all)-1 {
			end = ""
		}
		fmt.Printf("%s%s\n", text, end)
	}
	fmt.Println("]")
}

// compact leaves out what the API types write even when nothing is there.
func compact(v *verdicts) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var plain map[string]any
	if err := json.Unmarshal(text, &plain); err != nil {
		return nil, err
	}
	for _, node := range plain["nodes"].([]any) {
		status := node.(map[string]any)["status"].(map[string]any)
		delete(status, "nodeInfo")
		delete(status, "daemonEndpoints")
	}
	return json.Marshal(plain)
}

func newFramework(ctx context.Context, v *verdicts) (framework.Framework, fwk.SharedDRAManager, error) {
	objects := v.deviceObjects()
	for _, o := range v.Namespaces {
		objects = append(objects, o)
	}
	for _, o := range v.Services {
		objects = append(objects, o)
	}
	for _, o := range v.ReplicaSets {
		objects = append(objects, o)
	}
	client := fake.NewClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	manager, filled, err := newDRAManager(ctx, client, factory)
	if err != nil {
		return nil, nil, err
	}
	var versioned configv1.KubeSchedulerConfiguration
	scheme.Scheme.Default(&versioned)
	var cfg config.KubeSchedulerConfiguration
	if err := scheme.Scheme.Convert(&versioned, &cfg, nil); err != nil {
		return nil, nil, err
	}
	profile := cfg.Profiles[0]
	var enabled []config.Plugin
	for _, p := range profile.Plugins.MultiPoint.Enabled {
		switch p.Name {
		case names.VolumeRestrictions, names.NodeVolumeLimits, names.VolumeBinding, names.VolumeZone:
		default:
			enabled = append(enabled, p)
		}
	}
	profile.Plugins.MultiPoint.Enabled = enabled
	f, err := frameworkruntime.NewFramework(ctx, plugins.NewInTreeRegistry(), &profile,
		frameworkruntime.WithClientSet(client),
		frameworkruntime.WithInformerFactory(factory),
		frameworkruntime.WithSharedDRAManager(manager),
		frameworkruntime.WithSnapshotSharedLister(internalcache.NewSnapshot(v.Pods, v.Nodes)),
	)
	if err != nil {
		return nil, nil, err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	return f, manager, filled(v)
}

func answer(v *verdicts) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f, manager, err := newFramework(ctx, v)
	if err != nil {
		return err
	}
	if len(v.Classes) > 0 {
		if err := choose(ctx, manager, v); err != nil {
			return err
		}
	}
	v.Rejected, v.Scores = map[string]status{}, map[string]map[string]int64{}
	told := func(s *fwk.Status) status { return status{s.Plugin(), s.Code().String(), s.Reasons()} }
	state := framework.NewCycleState()
	result, s, _ := f.RunPreFilterPlugins(ctx, state, v.Pod)
	if !s.IsSuccess() {
		answer := told(s)
		v.PreFilter = &answer
		return nil
	}
	infos, err := f.SnapshotSharedLister().NodeInfos().List()
	if err != nil {
		return err
	}
	var feasible []fwk.NodeInfo
	for _, info := range infos {
		if result != nil && !result.AllNodes() && !result.NodeNames.Has(info.Node().Name) {
			continue
		}
		if s := f.RunFilterPlugins(ctx, state, v.Pod, info); !s.IsSuccess() {
			v.Rejected[info.Node().Name] = told(s)
			continue
		}
		feasible = append(feasible, info)
	}
	if len(feasible) == 0 {
		return nil
	}
	if s := f.RunPreScorePlugins(ctx, state, v.Pod, feasible); !s.IsSuccess() {
		return s.AsError()
	}
	scores, s := f.RunScorePlugins(ctx, state, v.Pod, feasible)
	if !s.IsSuccess() {
		return s.AsError()
	}
	for _, node := range scores {
		of := map[string]int64{}
		for _, plugin := range node.Scores {
			of[plugin.Name] = plugin.Score
		}
		v.Scores[node.Name] = of
	}
	return nil
}

// source of random choices.
type source struct{ *rand.Rand }

func (s *source) oneIn(n int) bool { return s.Intn(n) == 0 }

func (s *source) pick(from ...string) string { return from[s.Intn(len(from))] }

func (s *source) quantities(scale int64, always bool) v1.ResourceList {
	list := v1.ResourceList{}
	if always || s.Intn(4) > 0 {
		list[v1.ResourceCPU] = *resource.NewMilliQuantity(100*scale*(1+s.Int63n(20)), resource.DecimalSI)
	}
	if always || s.Intn(4) > 0 {
		list[v1.ResourceMemory] = *resource.NewQuantity(64*scale*(1+s.Int63n(20))<<20, resource.BinarySI)
	}
	if s.oneIn(12) || always {
		list[v1.ResourceEphemeralStorage] = *resource.NewQuantity(100*scale*(1+s.Int63n(9))<<20, resource.BinarySI)
	}
	if s.oneIn(12) || (always && s.oneIn(2)) {
		list["example.com/gpu"] = *resource.NewQuantity(1+s.Int63n(2*scale), resource.DecimalSI)
	}
	return list
}

func (s *source) selector() *metav1.LabelSelector {
	if s.oneIn(4) {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
			Key: "app", Operator: metav1.LabelSelectorOperator(s.pick("In", "NotIn")), Values: []string{s.pick("web", "db")},
		}}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": s.pick("web", "db")}}
}

func (s *source) topologyKey() string {
	return s.pick(v1.LabelTopologyZone, v1.LabelTopologyZone, v1.LabelHostname, "rack")
}

func (s *source) term() v1.PodAffinityTerm {
	term := v1.PodAffinityTerm{TopologyKey: s.topologyKey(), LabelSelector: s.selector()}
	switch s.Intn(5) {
	case 0:
		term.Namespaces = []string{s.pick("default", "other")}
	case 1:
		term.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": s.pick("x", "y")}}
	case 2:
		term.NamespaceSelector = &metav1.LabelSelector{}
	}
	return term
}

func (s *source) affinity(often int) *v1.Affinity {
	a := &v1.Affinity{}
	weighted := func() []v1.WeightedPodAffinityTerm {
		return []v1.WeightedPodAffinityTerm{{Weight: 1 + s.Int31n(100), PodAffinityTerm: s.term()}}
	}
	if s.oneIn(often * 2) {
		a.PodAffinity = &v1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{s.term()}}
	}
	if s.oneIn(often) {
		if a.PodAffinity == nil {
			a.PodAffinity = &v1.PodAffinity{}
		}
		a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution = weighted()
	}
	if s.oneIn(often) {
		a.PodAntiAffinity = &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{s.term()}}
	}
	if s.oneIn(often) {
		if a.PodAntiAffinity == nil {
			a.PodAntiAffinity = &v1.PodAntiAffinity{}
		}
		a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution = weighted()
	}
	return a
}

func (s *source) nodeTerm() v1.NodeSelectorTerm {
	if s.oneIn(5) {
		return v1.NodeSelectorTerm{MatchFields: []v1.NodeSelectorRequirement{{
			Key: "metadata.name", Operator: v1.NodeSelectorOperator(s.pick("In", "NotIn")), Values: []string{fmt.Sprintf("n%d", s.Intn(6))},
		}}}
	}
	requirement := v1.NodeSelectorRequirement{Key: s.pick(v1.LabelTopologyZone, "rack", "speed")}
	requirement.Operator = v1.NodeSelectorOperator(s.pick("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"))
	switch requirement.Operator {
	case v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn:
		requirement.Values = []string{s.pick("z1", "z2", "r1"), s.pick("z3", "r2", "5")}
	case v1.NodeSelectorOpGt, v1.NodeSelectorOpLt:
		requirement.Values = []string{s.pick("3", "7")}
	}
	return v1.NodeSelectorTerm{MatchExpressions: []v1.NodeSelectorRequirement{requirement}}
}

func (s *source) images() []string {
	return []string{"registry.example.com/a:1", "registry.example.com/b", "registry.example.com/c:latest"}
}

func (s *source) container(name string, scale int64) v1.Container {
	c := v1.Container{Name: name, Image: s.images()[s.Intn(3)]}
	if s.Intn(5) > 0 {
		c.Resources.Requests = s.quantities(scale, false)
	}
	if s.oneIn(6) {
		c.Ports = []v1.ContainerPort{{
			ContainerPort: 80, HostPort: 8080 + s.Int31n(2), Protocol: v1.Protocol(s.pick("TCP", "UDP")), HostIP: s.pick("", "0.0.0.0", "10.0.0.1"),
		}}
	}
	return c
}

func (s *source) pod(name string, scale int64) *v1.Pod {
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.pick("default", "default", "other"), UID: types.UID(name)},
		Spec:       v1.PodSpec{SchedulerName: v1.DefaultSchedulerName, Containers: []v1.Container{s.container("c", scale)}},
	}
	if s.Intn(6) > 0 {
		p.Labels = map[string]string{"app": s.pick("web", "db"), "rev": s.pick("1", "2")}
	}
	always := v1.ContainerRestartPolicyAlways
	if s.oneIn(5) {
		c := s.container("side", scale)
		c.RestartPolicy = &always
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	if s.oneIn(5) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, s.container("init", 2*scale))
	}
	if s.oneIn(8) {
		p.Spec.Overhead = v1.ResourceList{v1.ResourceCPU: resource.MustParse("50m")}
	}
	if s.oneIn(8) {
		p.Spec.Resources = &v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2500m")}}
	}
	if s.oneIn(4) {
		controller := true
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: "rs", Controller: &controller}}
	}
	return p
}

func (s *source) node(i int) *v1.Node {
	name := fmt.Sprintf("n%d", i)
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelHostname: name}}}
	if s.Intn(6) > 0 {
		n.Labels[v1.LabelTopologyZone] = s.pick("z1", "z2", "z3")
	}
	if s.Intn(3) > 0 {
		n.Labels["rack"] = s.pick("r1", "r2")
	}
	if s.oneIn(2) {
		n.Labels["speed"] = s.pick("1", "5", "9", "fast")
	}
	n.Status.Allocatable = s.quantities(8, true)
	n.Status.Allocatable[v1.ResourcePods] = *resource.NewQuantity(3+s.Int63n(8), resource.DecimalSI)
	for _, image := range s.images() {
		if s.oneIn(2) {
			if image == "registry.example.com/b" {
				image += ":latest"
			}
			n.Status.Images = append(n.Status.Images, v1.ContainerImage{Names: []string{image}, SizeBytes: int64(len(image)) * 12 << 20})
		}
	}
	for _, key := range []string{"gpu", "old"} {
		if s.oneIn(8) {
			n.Spec.Taints = append(n.Spec.Taints, v1.Taint{
				Key: key, Value: s.pick("", "yes"), Effect: v1.TaintEffect(s.pick("NoSchedule", "PreferNoSchedule", "PreferNoSchedule", "NoExecute")),
			})
		}
	}
	n.Spec.Unschedulable = s.oneIn(15)
	return n
}

func question(s *source) *verdicts {
	meta := func(name, team string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": team}}
	}
	v := &verdicts{
		Namespaces: []*v1.Namespace{{ObjectMeta: meta("default", "x")}, {ObjectMeta: meta("other", "y")}},
		ReplicaSets: []*appsv1.ReplicaSet{{
			ObjectMeta: metav1.ObjectMeta{Name: "rs", Namespace: "default"}, Spec: appsv1.ReplicaSetSpec{Selector: s.selector()},
		}},
	}
	if s.oneIn(3) {
		v.Services = []*v1.Service{{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: v1.ServiceSpec{Selector: map[string]string{"app": "web"}},
		}}
	}
	nodes := 3 + s.Intn(4)
	for i := range nodes {
		v.Nodes = append(v.Nodes, s.node(i))
	}
	deleted := metav1.Unix(1700000000, 0)
	for i := range s.Intn(12) {
		p := s.pod(fmt.Sprintf("placed-%d", i), 1)
		p.Spec.NodeName = v.Nodes[s.Intn(nodes)].Name
		p.Spec.Affinity = s.affinity(8)
		if s.oneIn(10) {
			p.DeletionTimestamp = &deleted
		}
		v.Pods = append(v.Pods, p)
	}
	v.Pod = s.pod("pod", 1)
	v.Pod.Spec.Affinity = s.affinity(4)
	// Upstream's NodeResourcesFit filters by pod-level resources but forgets them when it scores; Gantry's does not.
	v.Pod.Spec.Resources = nil
	extras(s, v.Pod)
	return v
}

// extras are what only the pod to place needs.
func extras(s *source, p *v1.Pod) {
	if s.oneIn(8) {
		p.Spec.NodeSelector = map[string]string{"rack": s.pick("r1", "r2")}
	}
	if s.oneIn(4) {
		terms := []v1.NodeSelectorTerm{s.nodeTerm()}
		if s.oneIn(2) {
			terms = append(terms, s.nodeTerm())
		}
		p.Spec.Affinity.NodeAffinity = &v1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{NodeSelectorTerms: terms},
		}
	}
	if s.oneIn(3) {
		if p.Spec.Affinity.NodeAffinity == nil {
			p.Spec.Affinity.NodeAffinity = &v1.NodeAffinity{}
		}
		p.Spec.Affinity.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution = []v1.PreferredSchedulingTerm{
			{Weight: 1 + s.Int31n(100), Preference: s.nodeTerm()}, {Weight: 1 + s.Int31n(100), Preference: s.nodeTerm()},
		}
	}
	for _, key := range []string{"gpu", "old", v1.TaintNodeUnschedulable} {
		if s.oneIn(3) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, v1.Toleration{
				Key: key, Operator: v1.TolerationOperator(s.pick("Exists", "Equal")), Effect: v1.TaintEffect(s.pick("", "NoSchedule", "PreferNoSchedule")),
			})
		}
	}
	for range s.Intn(3) {
		c := v1.TopologySpreadConstraint{
			MaxSkew: 1 + s.Int31n(2), TopologyKey: s.topologyKey(), LabelSelector: s.selector(),
			WhenUnsatisfiable: v1.UnsatisfiableConstraintAction(s.pick("DoNotSchedule", "ScheduleAnyway")),
		}
		policy := func() *v1.NodeInclusionPolicy {
			p := v1.NodeInclusionPolicy(s.pick("Honor", "Ignore"))
			return &p
		}
		if s.oneIn(3) {
			c.NodeAffinityPolicy = policy()
		}
		if s.oneIn(3) {
			c.NodeTaintsPolicy = policy()
		}
		if c.WhenUnsatisfiable == v1.DoNotSchedule && s.oneIn(3) {
			least := 1 + s.Int31n(3)
			c.MinDomains = &least
		}
		if s.oneIn(4) {
			c.MatchLabelKeys = []string{"rev"}
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
	}
}
