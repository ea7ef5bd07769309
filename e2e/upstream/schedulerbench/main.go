// Command schedulerbench runs upstream's kube-scheduler in process over a fake
// cluster and prints what one decision costs, as the peer of Gantry's
// scheduler-core-bench: the same nodes, the same pods, the same JSON.
//
// Pods wait in the queue before the clock starts; binding does nothing, so
// that only deciding is measured. CPU seconds are the process's own, from the
// start of the scheduling loop to the last decision.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	configv1 "k8s.io/kube-scheduler/config/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

const bindName = "NoopBinder"

// noopBinder says yes and counts.
type noopBinder struct {
	left atomic.Int64
	done chan struct{}
}

func (*noopBinder) Name() string { return bindName }

func (b *noopBinder) Bind(context.Context, fwk.CycleState, *v1.Pod, string) *fwk.Status {
	if b.left.Add(-1) == 0 {
		close(b.done)
	}
	return nil
}

// quietRecorder drops events: writing them is not deciding.
type quietRecorder struct{}

func (quietRecorder) Eventf(runtime.Object, runtime.Object, string, string, string, string, ...any) {}

func (r quietRecorder) WithLogger(klog.Logger) events.EventRecorderLogger { return r }

var _ events.EventRecorderLogger = quietRecorder{}

type report struct {
	Nodes                 int     `json:"nodes"`
	Pods                  int     `json:"pods"`
	Workload              string  `json:"workload"`
	CPUSeconds            float64 `json:"cpu_seconds"`
	WallSeconds           float64 `json:"wall_seconds"`
	DecisionsPerCPUSecond float64 `json:"decisions_per_cpu_second"`
	P50                   float64 `json:"p50_us"`
	P99                   float64 `json:"p99_us"`
}

func main() {
	nodes := flag.Int("nodes", 5000, "number of nodes: 32 CPU, 256Gi, 110 pods, in 3 zones")
	pods := flag.Int("pods", 2000, "number of pods to place: 100m CPU, 128Mi")
	workload := flag.String("workload", "identical", "identical, zone-spread, host-anti-affinity or distinct")
	percentage := flag.Int("percentage-of-nodes-to-score", 0, "share of the nodes to look at; 0 is upstream's own choice, 100 is all")
	flag.Parse()
	if err := run(*nodes, *pods, *workload, int32(*percentage)); err != nil {
		fmt.Fprintln(os.Stderr, "schedulerbench:", err)
		os.Exit(1)
	}
}

func run(nodes, pods int, workload string, percentage int32) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	klog.SetLogger(klog.Logger{})

	objects := make([]runtime.Object, 0, nodes+pods)
	for i := range nodes {
		objects = append(objects, node(i))
	}
	for i := range pods {
		p, err := pod(i, workload)
		if err != nil {
			return err
		}
		objects = append(objects, p)
	}
	client := fake.NewClientset(objects...)
	factory := scheduler.NewInformerFactory(client, 0, nil)

	binder := &noopBinder{done: make(chan struct{})}
	binder.left.Store(int64(pods))
	var versioned configv1.KubeSchedulerConfiguration
	scheme.Scheme.Default(&versioned)
	var cfg config.KubeSchedulerConfiguration
	if err := scheme.Scheme.Convert(&versioned, &cfg, nil); err != nil {
		return err
	}
	cfg.Profiles[0].Plugins.Bind = config.PluginSet{
		Enabled:  []config.Plugin{{Name: bindName}},
		Disabled: []config.Plugin{{Name: "*"}},
	}
	sched, err := scheduler.New(ctx, client, factory, nil,
		profile.RecorderFactory(func(string) events.EventRecorderLogger { return quietRecorder{} }),
		scheduler.WithProfiles(cfg.Profiles...),
		scheduler.WithPercentageOfNodesToScore(&percentage),
		scheduler.WithFrameworkOutOfTreeRegistry(frameworkruntime.Registry{
			bindName: func(context.Context, runtime.Object, fwk.Handle) (fwk.Plugin, error) { return binder, nil },
		}),
	)
	if err != nil {
		return err
	}
	var lock sync.Mutex
	latencies := make([]float64, 0, pods)
	schedulePod := sched.SchedulePod
	sched.SchedulePod = func(ctx context.Context, f framework.Framework, state fwk.CycleState, info *framework.QueuedPodInfo) (scheduler.ScheduleResult, error) {
		start := time.Now()
		result, err := schedulePod(ctx, f, state, info)
		lock.Lock()
		latencies = append(latencies, float64(time.Since(start).Nanoseconds())/1000)
		lock.Unlock()
		return result, err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := sched.WaitForHandlersSync(ctx); err != nil {
		return err
	}

	before, start := cpuSeconds(), time.Now()
	go sched.Run(ctx)
	<-binder.done
	cpu, wall := cpuSeconds()-before, time.Since(start).Seconds()

	lock.Lock()
	defer lock.Unlock()
	sort.Float64s(latencies)
	at := func(q float64) float64 { return latencies[min(len(latencies)-1, int(q*float64(len(latencies))))] }
	return json.NewEncoder(os.Stdout).Encode(report{
		Nodes: nodes, Pods: pods, Workload: workload,
		CPUSeconds: cpu, WallSeconds: wall, DecisionsPerCPUSecond: float64(pods) / cpu,
		P50: at(0.50), P99: at(0.99),
	})
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}

func node(i int) *v1.Node {
	name := fmt.Sprintf("node-%06d", i)
	resources := v1.ResourceList{
		v1.ResourceCPU:    resource.MustParse("32"),
		v1.ResourceMemory: resource.MustParse("256Gi"),
		v1.ResourcePods:   resource.MustParse("110"),
	}
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			v1.LabelHostname:     name,
			v1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%3),
		}},
		Status: v1.NodeStatus{
			Capacity:    resources,
			Allocatable: resources,
			Conditions:  []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue}},
		},
	}
}

func pod(i int, workload string) (*v1.Pod, error) {
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("pod-%06d", i), Namespace: "default", UID: types.UID(fmt.Sprintf("pod-%06d", i)),
			Labels: map[string]string{"app": "bench"},
		},
		Spec: v1.PodSpec{
			SchedulerName: v1.DefaultSchedulerName,
			Containers: []v1.Container{{Name: "c", Image: "registry.k8s.io/pause:3.10", Resources: v1.ResourceRequirements{
				Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m"), v1.ResourceMemory: resource.MustParse("128Mi")},
			}}},
		},
	}
	own := &metav1.LabelSelector{MatchLabels: p.Labels}
	switch workload {
	case "identical":
	case "distinct":
		p.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = *resource.NewMilliQuantity(int64(100+i), resource.DecimalSI)
	case "zone-spread":
		p.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: v1.LabelTopologyZone, WhenUnsatisfiable: v1.DoNotSchedule, LabelSelector: own,
		}}
	case "host-anti-affinity":
		p.Spec.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{{TopologyKey: v1.LabelHostname, LabelSelector: own}},
		}}
	default:
		return nil, fmt.Errorf("unknown workload %q: identical, zone-spread, host-anti-affinity or distinct", workload)
	}
	return p, nil
}
