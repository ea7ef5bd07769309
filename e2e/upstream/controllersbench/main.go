// Command controllersbench is the load of `cargo e2e bench controllers`: it
// makes objects as users, schedulers and kubelets would, and waits until the
// controllers have done their part.
//
// A workload is a row of phases. Each begins with a line on stdin and ends
// with a line of JSON on stdout, so that whoever measures can look at the
// controller manager in between.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	namespace = "bench"
	// Writes at the same time.
	workers = 32
	// Longer than any phase takes that ends at all.
	patience = 30 * time.Minute
)

// phase is a part of a workload that is measured by itself.
type phase struct {
	name string
	// What it makes, changes or deletes.
	objects int
	run     func(context.Context) error
}

type report struct {
	Phase   string  `json:"phase"`
	Objects int     `json:"objects"`
	Wall    float64 `json:"wall_seconds"`
	// Of all that follow, on the first line alone.
	Phases []string `json:"phases,omitempty"`
}

type bench struct {
	client kubernetes.Interface
	scale  float64
}

// of is the size at this scale of what the whole size is n.
func (b *bench) of(n int) int { return max(1, int(float64(n)*b.scale)) }

func main() {
	kubeconfig := flag.String("kubeconfig", "", "whose credentials")
	workload := flag.String("workload", "", "deployment, jobs, nodes, services, garbage or namespace")
	scale := flag.Float64("scale", 1, "share of the whole size")
	flag.Parse()
	if err := run(*kubeconfig, *workload, *scale); err != nil {
		fmt.Fprintln(os.Stderr, "controllersbench:", err)
		os.Exit(1)
	}
}

func run(kubeconfig, workload string, scale float64) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = -1, -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	b := &bench{client: client, scale: scale}
	workloads := map[string]func() []phase{
		"deployment": b.deployment,
		"jobs":       b.jobs,
		"nodes":      b.nodes,
		"services":   b.services,
		"garbage":    b.garbage,
		"namespace":  b.namespace,
	}
	phases, known := workloads[workload]
	if !known {
		return fmt.Errorf("-workload %q is none", workload)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	begin := bufio.NewScanner(os.Stdin)
	row := phases()
	var names []string
	for _, p := range row {
		names = append(names, p.name)
	}
	if err := out.Encode(report{Phases: names}); err != nil {
		return err
	}
	for _, p := range row {
		if !begin.Scan() {
			return begin.Err()
		}
		start := time.Now()
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if err := out.Encode(report{Phase: p.name, Objects: p.objects, Wall: time.Since(start).Seconds()}); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes the nodes that pods run on, which stay alive from now on, and the namespace, whose service account pods need.
func (b *bench) prepare(ctx context.Context) error {
	if err := parallel(hosts, func(i int) error { return b.join(ctx, i) }); err != nil {
		return err
	}
	go func() {
		for ctx.Err() == nil {
			time.Sleep(renewEvery)
			if err := parallel(hosts, func(i int) error { return b.renew(ctx, i) }); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "controllersbench: renew leases:", err)
			}
		}
	}()
	if err := b.makeNamespace(ctx, namespace); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		_, err := b.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, nil
	})
}

func (b *bench) makeNamespace(ctx context.Context, name string) error {
	object := &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := b.client.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{})
	return err
}

// parallel calls do with 0 to n-1, many at a time, and stops at the first error.
func parallel(n int, do func(i int) error) error {
	var next atomic.Int64
	var group sync.WaitGroup
	failures := make(chan error, workers)
	for range workers {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(i); err != nil {
					next.Store(int64(n))
					failures <- err
					return
				}
			}
		})
	}
	group.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

// poll is for what would cost the API server more to watch than to be asked for twice a second.
func poll(ctx context.Context, done func() (bool, error)) error {
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}
