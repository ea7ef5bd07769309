package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	leaseNamespace = "kube-node-lease"
	// Seconds between two renewals of a node's lease, and how long a node without one is taken for alive.
	renewEvery    = 10 * time.Second
	leaseDuration = 40
	// How long the nodes stand by.
	steady = 60 * time.Second
	// Pods a Service has.
	backends = 5
	// Changes of readiness of each Service.
	flips = 3
	// What an owner owns.
	dependents = 100
	// Nodes that stand before a workload begins, and that its pods are spread over.
	hosts = 50
)

// template is a pod as people write them: two containers, variables, probes, volumes.
func template(app string) v1.PodTemplateSpec {
	container := func(name string) v1.Container {
		probe := &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}}
		return v1.Container{
			Name: name, Image: "registry.example/team/" + app + "-" + name + ":v1.2.3",
			Args: []string{"--listen=:8080", "--log-level=info"},
			Env: []v1.EnvVar{
				{Name: "POD_NAME", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
				{Name: "REGION", Value: "north-1"}, {Name: "DATABASE", Value: "postgres://db.example:5432/main"},
			},
			Resources: v1.ResourceRequirements{Requests: v1.ResourceList{
				v1.ResourceCPU: resource.MustParse("100m"), v1.ResourceMemory: resource.MustParse("128Mi"),
			}},
			ReadinessProbe: probe, LivenessProbe: probe,
			VolumeMounts: []v1.VolumeMount{{Name: "config", MountPath: "/etc/config"}, {Name: "scratch", MountPath: "/scratch"}},
		}
	}
	main := container("main")
	main.Ports = []v1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	return v1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{
			Labels:      map[string]string{"app": app, "tier": "backend", "release": "stable"},
			Annotations: map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
		},
		Spec: v1.PodSpec{
			Containers: []v1.Container{main, container("sidecar")},
			Volumes: []v1.Volume{
				{Name: "config", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: app}}}},
				{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			},
		},
	}
}

// A Deployment from nothing to 10,000 pods that run, and back to nothing.
func (b *bench) deployment() []phase {
	count := b.of(10_000)
	deployments := b.client.AppsV1().Deployments(namespace)
	scaleTo := func(ctx context.Context, replicas int) error {
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
		_, err := deployments.Patch(ctx, "web", types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	up := func(ctx context.Context) error {
		object := &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: "web"},
			Spec: appsv1.DeploymentSpec{
				Replicas: new(int32),
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
				Template: template("web"),
			},
		}
		if _, err := deployments.Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		nodes, err := b.kubelets(ctx, v1.PodRunning)
		if err != nil {
			return err
		}
		if err := scaleTo(ctx, count); err != nil {
			return err
		}
		return nodes.until(ctx, func() (bool, error) {
			found, err := deployments.Get(ctx, "web", metav1.GetOptions{})
			return err == nil && int(found.Status.ReadyReplicas) == count, err
		})
	}
	down := func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		nodes, err := b.kubelets(ctx, v1.PodRunning)
		if err != nil {
			return err
		}
		if err := scaleTo(ctx, 0); err != nil {
			return err
		}
		return nodes.until(ctx, func() (bool, error) {
			found, err := deployments.Get(ctx, "web", metav1.GetOptions{})
			return err == nil && found.Status.Replicas == 0 && found.Status.ObservedGeneration == found.Generation, err
		})
	}
	return []phase{{"scale up", count, up}, {"scale down", count, down}}
}

// 1,000 Jobs of ten pods each, all of which succeed.
func (b *bench) jobs() []phase {
	count := b.of(1_000)
	run := func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		nodes, err := b.kubelets(ctx, v1.PodSucceeded)
		if err != nil {
			return err
		}
		jobs := b.client.BatchV1().Jobs(namespace)
		err = parallel(count, func(i int) error {
			ten := int32(10)
			pods := template("job")
			pods.Spec.RestartPolicy = v1.RestartPolicyNever
			object := &batchv1.Job{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("job-%05d", i)},
				Spec:       batchv1.JobSpec{Parallelism: &ten, Completions: &ten, Template: pods},
			}
			_, err := jobs.Create(ctx, object, metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return err
		}
		return nodes.until(ctx, func() (bool, error) {
			found, err := jobs.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
			if err != nil || len(found.Items) < count {
				return false, err
			}
			for _, job := range found.Items {
				if job.Status.CompletionTime == nil {
					return false, nil
				}
			}
			return true, nil
		})
	}
	return []phase{{"run to the end", count * 10, run}}
}

// 5,000 nodes that join, each with a lease, and then stand by for a minute.
func (b *bench) nodes() []phase {
	count := b.of(5_000)
	join := func(ctx context.Context) error {
		err := parallel(count, func(i int) error { return b.join(ctx, hosts+i) })
		if err != nil {
			return err
		}
		return poll(ctx, func() (bool, error) {
			found, err := b.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
			if err != nil {
				return false, err
			}
			for _, node := range found.Items {
				if node.Spec.PodCIDR == "" || len(node.Spec.Taints) > 0 {
					return false, nil
				}
			}
			return true, nil
		})
	}
	stand := func(ctx context.Context) error {
		end := time.Now().Add(steady)
		for round := time.Now(); round.Before(end); round = round.Add(renewEvery) {
			if err := parallel(count, func(i int) error { return b.renew(ctx, hosts+i) }); err != nil {
				return err
			}
			time.Sleep(time.Until(round.Add(renewEvery)))
		}
		return nil
	}
	return []phase{{"join", count, join}, {"leases for a minute", count, stand}}
}

func nodeName(i int) string { return fmt.Sprintf("node-%05d", i) }

func (b *bench) join(ctx context.Context, i int) error {
	name := nodeName(i)
	resources := v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("32"), v1.ResourceMemory: resource.MustParse("256Gi"), v1.ResourcePods: resource.MustParse("110"),
	}
	var images []v1.ContainerImage
	for k := range 20 {
		image := fmt.Sprintf("registry.example/team/image-%d", k)
		images = append(images, v1.ContainerImage{
			Names:     []string{image + "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", image + ":v1.2.3"},
			SizeBytes: 123_456_789,
		})
	}
	now := metav1.Now()
	condition := func(t v1.NodeConditionType, status v1.ConditionStatus) v1.NodeCondition {
		return v1.NodeCondition{Type: t, Status: status, LastHeartbeatTime: now, LastTransitionTime: now, Reason: "Kubelet" + string(t), Message: "kubelet says so"}
	}
	node := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			v1.LabelHostname: name, v1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%3), v1.LabelOSStable: "linux", v1.LabelArchStable: "amd64",
		}},
		Status: v1.NodeStatus{
			Capacity: resources, Allocatable: resources, Images: images,
			Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)}, {Type: v1.NodeHostName, Address: name}},
			Conditions: []v1.NodeCondition{
				condition(v1.NodeMemoryPressure, v1.ConditionFalse), condition(v1.NodeDiskPressure, v1.ConditionFalse),
				condition(v1.NodePIDPressure, v1.ConditionFalse), condition(v1.NodeReady, v1.ConditionTrue),
			},
			NodeInfo: v1.NodeSystemInfo{KubeletVersion: "v1.37.2", OperatingSystem: "linux", Architecture: "amd64"},
		},
	}
	if _, err := b.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return err
	}
	seconds := int32(leaseDuration)
	renewed := metav1.NewMicroTime(time.Now())
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &renewed},
	}
	_, err := b.client.CoordinationV1().Leases(leaseNamespace).Create(ctx, lease, metav1.CreateOptions{})
	return err
}

func (b *bench) renew(ctx context.Context, i int) error {
	patch := fmt.Appendf(nil, `{"spec":{"renewTime":%q}}`, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"))
	_, err := b.client.CoordinationV1().Leases(leaseNamespace).Patch(ctx, nodeName(i), types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// 2,000 Services of five pods each, whose readiness then comes and goes.
func (b *bench) services() []phase {
	count := b.of(2_000)
	pods := b.client.CoreV1().Pods(namespace)
	create := func(ctx context.Context) error {
		err := parallel(count, func(i int) error {
			app := fmt.Sprintf("app-%05d", i)
			service := &v1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: app},
				Spec: v1.ServiceSpec{
					Selector: map[string]string{"app": app},
					Ports:    []v1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
				},
			}
			_, err := b.client.CoreV1().Services(namespace).Create(ctx, service, metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return err
		}
		err = parallel(count*backends, func(i int) error {
			t := template(fmt.Sprintf("app-%05d", i/backends))
			pod := &v1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
			pod.Name = backend(i)
			pod.Spec.NodeName = host(i)
			made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			return b.setStatus(ctx, made.Name, v1.PodRunning, address(i), true)
		})
		if err != nil {
			return err
		}
		return b.slices(ctx, count, true)
	}
	churn := func(ctx context.Context) error {
		for flip := range flips {
			ready := flip%2 == 1
			err := parallel(count, func(i int) error {
				return b.setStatus(ctx, backend(i*backends), v1.PodRunning, address(i*backends), ready)
			})
			if err != nil {
				return err
			}
			if err := b.slices(ctx, count, ready); err != nil {
				return err
			}
		}
		return nil
	}
	return []phase{{"create", count * backends, create}, {"churn", count * flips, churn}}
}

func backend(i int) string { return fmt.Sprintf("app-%05d-%d", i/backends, i%backends) }
func host(i int) string    { return nodeName(i % hosts) }
func address(i int) string { return fmt.Sprintf("10.%d.%d.%d", 130+i/65536, i/256%256, i%256) }

// slices waits until every Service has its endpoints, and the first of each is as ready as told.
func (b *bench) slices(ctx context.Context, services int, first bool) error {
	wanted := services * backends
	if !first {
		wanted -= services
	}
	return poll(ctx, func() (bool, error) {
		found, err := b.client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return false, err
		}
		ready := 0
		for _, slice := range found.Items {
			for _, endpoint := range slice.Endpoints {
				if endpoint.Conditions.Ready != nil && *endpoint.Conditions.Ready {
					ready++
				}
			}
		}
		return ready == wanted, nil
	})
}

// 50,000 objects whose owners are deleted.
func (b *bench) garbage() []phase {
	owners := b.of(50_000 / dependents)
	maps := b.client.CoreV1().ConfigMaps(namespace)
	create := func(ctx context.Context) error {
		return parallel(owners, func(i int) error {
			name := fmt.Sprintf("owner-%04d", i)
			made, err := maps.Create(ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			reference := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: name, UID: made.UID}
			for k := range dependents {
				object := &v1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{
						Name: fmt.Sprintf("%s-%03d", name, k), OwnerReferences: []metav1.OwnerReference{reference},
						Labels: map[string]string{"owner": name},
					},
					Data: map[string]string{"key": "value"},
				}
				if _, err := maps.Create(ctx, object, metav1.CreateOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	collect := func(ctx context.Context) error {
		err := parallel(owners, func(i int) error {
			return maps.Delete(ctx, fmt.Sprintf("owner-%04d", i), metav1.DeleteOptions{})
		})
		if err != nil {
			return err
		}
		return poll(ctx, func() (bool, error) {
			// kube-root-ca.crt stays. The count of what is left is cheaper than what is left.
			found, err := maps.List(ctx, metav1.ListOptions{Limit: 2})
			if err != nil {
				return false, err
			}
			return len(found.Items) <= 1 && found.Continue == "", nil
		})
	}
	return []phase{{"create", owners * (dependents + 1), create}, {"collect", owners * dependents, collect}}
}

// A namespace that is deleted with 20,000 objects of several kinds in it.
func (b *bench) namespace() []phase {
	count := b.of(20_000)
	const name = "doomed"
	create := func(ctx context.Context) error {
		if err := b.makeNamespace(ctx, name); err != nil {
			return err
		}
		return parallel(count, func(i int) error {
			meta := metav1.ObjectMeta{Name: fmt.Sprintf("object-%05d", i)}
			var err error
			switch i % 4 {
			case 0:
				_, err = b.client.CoreV1().Secrets(name).Create(ctx, &v1.Secret{ObjectMeta: meta}, metav1.CreateOptions{})
			case 1:
				_, err = b.client.CoreV1().ServiceAccounts(name).Create(ctx, &v1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{})
			default:
				_, err = b.client.CoreV1().ConfigMaps(name).Create(ctx, &v1.ConfigMap{ObjectMeta: meta}, metav1.CreateOptions{})
			}
			return err
		})
	}
	end := func(ctx context.Context) error {
		if err := b.client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		return poll(ctx, func() (bool, error) {
			_, err := b.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return true, nil
			}
			return false, err
		})
	}
	return []phase{{"create", count, create}, {"delete", count, end}}
}

// nodes stand in for schedulers and kubelets: pods get a node and a status, and those that are to go, go.
type nodes struct {
	failed chan error
}

// kubelets begins to stand in, until the context ends.
func (b *bench) kubelets(ctx context.Context, phase v1.PodPhase) (*nodes, error) {
	pods := b.client.CoreV1().Pods(namespace)
	// No initial events are asked for: what is there was looked after before.
	list, err := pods.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return nil, err
	}
	n := &nodes{failed: make(chan error, 1)}
	work := make(chan *v1.Pod, 200_000)
	go func() {
		defer close(work)
		version := list.ResourceVersion
		for ctx.Err() == nil {
			watcher, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: version, AllowWatchBookmarks: true})
			if err != nil {
				n.fail(ctx, err)
				return
			}
			for event := range watcher.ResultChan() {
				pod, isPod := event.Object.(*v1.Pod)
				if !isPod {
					n.fail(ctx, apierrors.FromObject(event.Object))
					return
				}
				version = pod.ResourceVersion
				if event.Type == watch.Added || (event.Type == watch.Modified && pod.DeletionTimestamp != nil) {
					work <- pod
				}
			}
		}
	}()
	var lock sync.Mutex
	number := 0
	for range workers {
		go func() {
			for pod := range work {
				lock.Lock()
				number++
				i := number
				lock.Unlock()
				if err := b.look(ctx, pod, phase, i); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
					n.fail(ctx, err)
				}
			}
		}()
	}
	return n, nil
}

func (n *nodes) fail(ctx context.Context, err error) {
	if ctx.Err() == nil {
		select {
		case n.failed <- err:
		default:
		}
	}
}

// until waits; what the stand-ins cannot do ends it.
func (n *nodes) until(ctx context.Context, done func() (bool, error)) error {
	return poll(ctx, func() (bool, error) {
		select {
		case err := <-n.failed:
			return false, err
		default:
			return done()
		}
	})
}

func (b *bench) look(ctx context.Context, pod *v1.Pod, phase v1.PodPhase, i int) error {
	pods := b.client.CoreV1().Pods(namespace)
	if pod.DeletionTimestamp != nil {
		if pod.Spec.NodeName == "" || len(pod.Finalizers) > 0 && pod.Status.Phase == v1.PodSucceeded {
			return nil
		}
		now := int64(0)
		return pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	}
	if pod.Spec.NodeName == "" {
		binding := &v1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, UID: pod.UID}, Target: v1.ObjectReference{Kind: "Node", Name: host(i)}}
		if err := pods.Bind(ctx, binding, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return b.setStatus(ctx, pod.Name, phase, address(i), phase == v1.PodRunning)
}

func (b *bench) setStatus(ctx context.Context, name string, phase v1.PodPhase, ip string, ready bool) error {
	status := v1.ConditionFalse
	if ready {
		status = v1.ConditionTrue
	}
	now := time.Now().UTC().Format(time.RFC3339)
	condition := func(kind string) string {
		return fmt.Sprintf(`{"type":%q,"status":%q,"lastTransitionTime":%q}`, kind, status, now)
	}
	container := func(name string) string {
		state := fmt.Sprintf(`{"running":{"startedAt":%q}}`, now)
		if phase == v1.PodSucceeded {
			state = fmt.Sprintf(`{"terminated":{"exitCode":0,"reason":"Completed","startedAt":%q,"finishedAt":%q}}`, now, now)
		}
		return fmt.Sprintf(`{"name":%q,"image":"i","imageID":"sha256:0123456789abcdef","containerID":"containerd://0123456789abcdef","ready":%t,"restartCount":0,"state":%s}`, name, ready, state)
	}
	patch := fmt.Sprintf(
		`{"status":{"phase":%q,"podIP":%q,"podIPs":[{"ip":%q}],"hostIP":"10.0.0.1","startTime":%q,"conditions":[%s,%s,{"type":"PodScheduled","status":"True"}],"containerStatuses":[%s,%s]}}`,
		phase, ip, ip, now, condition("Ready"), condition("ContainersReady"), container("main"), container("sidecar"))
	_, err := b.client.CoreV1().Pods(namespace).Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	return err
}
