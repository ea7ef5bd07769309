// A provider of virtual nodes: each container is a plain child process of this program, its log is kept in memory.
//
//	go generate && go run . /run/provider.sock
//
// Nothing is isolated and no image is pulled: this shows the protocol, and is no way to run what you do not trust.
package main

//go:generate sh -c "PATH=$(dirname $(go tool -n protoc-gen-go)):$(dirname $(go tool -n protoc-gen-go-grpc)):$PATH protoc -I ../../proto --go_out=. --go_opt=Mprovider.proto=gantry/examples/provider/v1 --go_opt=module=gantry/examples/provider --go-grpc_out=. --go-grpc_opt=Mprovider.proto=gantry/examples/provider/v1 --go-grpc_opt=module=gantry/examples/provider provider.proto"

import (
	"bytes"
	"context"
	"encoding/json"
	"log"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "gantry/examples/provider/v1"
)

type container struct {
	status *pb.ContainerStatus
	cmd    *exec.Cmd
	log    bytes.Buffer
}

type pod struct {
	id         *pb.PodId
	containers []*container
	running    sync.WaitGroup
}

type provider struct {
	pb.UnimplementedProviderServer
	mu       sync.Mutex
	pods     map[string]*pod
	watchers map[chan *pb.PodEvent]bool
}

// locked is a container's log: written by its process, read by clients.
type locked struct {
	mu *sync.Mutex
	to *bytes.Buffer
}

func (l locked) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(data)
}

func (p *provider) tell(event *pb.PodEvent) {
	for watcher := range p.watchers {
		watcher <- event
	}
}

func (p *pod) status() *pb.PodStatus {
	s := &pb.PodStatus{Id: p.id, PodIps: []string{"127.0.0.1"}}
	for _, c := range p.containers {
		s.Containers = append(s.Containers, c.status)
	}
	return s
}

func (p *provider) Info(context.Context, *pb.InfoRequest) (*pb.InfoResponse, error) {
	return &pb.InfoResponse{Name: "go", Version: "1", Calls: []string{"Logs"}}, nil
}

func (p *provider) ListPods(context.Context, *pb.ListPodsRequest) (*pb.ListPodsResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := &pb.ListPodsResponse{}
	for _, pod := range p.pods {
		list.Pods = append(list.Pods, pod.status())
	}
	return list, nil
}

func (p *provider) CreatePod(_ context.Context, r *pb.CreatePodRequest) (*pb.CreatePodResponse, error) {
	var object struct {
		Spec struct {
			Containers []struct {
				Name          string
				Command, Args []string
			}
		}
	}
	if err := json.Unmarshal(r.Pod, &object); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pods[r.Id.Uid] != nil {
		return &pb.CreatePodResponse{}, nil
	}
	created := &pod{id: r.Id}
	for index, spec := range object.Spec.Containers {
		if len(spec.Command) == 0 {
			return nil, status.Errorf(codes.InvalidArgument, "spec.containers[%d].command: images are not pulled, so a command must be given", index)
		}
		c := &container{cmd: exec.Command(spec.Command[0], append(spec.Command[1:], spec.Args...)...)}
		c.cmd.Stdout, c.cmd.Stderr = locked{&p.mu, &c.log}, locked{&p.mu, &c.log}
		c.status = &pb.ContainerStatus{Name: spec.Name}
		created.containers = append(created.containers, c)
	}
	for _, c := range created.containers {
		started := time.Now().UnixNano()
		if err := c.cmd.Start(); err != nil {
			c.status.State = &pb.ContainerStatus_Terminated{Terminated: &pb.Terminated{ExitCode: 128, Reason: "StartError", Message: err.Error(), StartedAt: started, FinishedAt: started}}
			continue
		}
		c.status.Ready = true
		c.status.State = &pb.ContainerStatus_Running{Running: &pb.Running{StartedAt: started}}
		created.running.Add(1)
		go p.wait(created, c, started)
	}
	p.pods[r.Id.Uid] = created
	p.tell(&pb.PodEvent{Event: &pb.PodEvent_Status{Status: created.status()}})
	return &pb.CreatePodResponse{}, nil
}

func (p *provider) wait(of *pod, c *container, started int64) {
	defer of.running.Done()
	_ = c.cmd.Wait()
	code := int32(c.cmd.ProcessState.ExitCode())
	if status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int32(status.Signal())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A new message: the old one may be on its way.
	c.status = &pb.ContainerStatus{Name: c.status.Name, State: &pb.ContainerStatus_Terminated{Terminated: &pb.Terminated{ExitCode: code, StartedAt: started, FinishedAt: time.Now().UnixNano()}}}
	p.tell(&pb.PodEvent{Event: &pb.PodEvent_Status{Status: of.status()}})
}

func (p *provider) DeletePod(_ context.Context, r *pb.DeletePodRequest) (*pb.DeletePodResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.pods[r.Id.Uid]
	if of == nil {
		return nil, status.Error(codes.NotFound, "no such pod")
	}
	signal := func(s os.Signal) {
		for _, c := range of.containers {
			if c.cmd.Process != nil {
				_ = c.cmd.Process.Signal(s)
			}
		}
	}
	signal(syscall.SIGTERM)
	kill := time.AfterFunc(time.Duration(r.GracePeriodSeconds)*time.Second, func() { signal(syscall.SIGKILL) })
	go func() {
		of.running.Wait()
		kill.Stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.pods, r.Id.Uid)
		p.tell(&pb.PodEvent{Event: &pb.PodEvent_Gone{Gone: r.Id}})
	}()
	return &pb.DeletePodResponse{}, nil
}

func (p *provider) WatchPods(_ *pb.WatchPodsRequest, stream pb.Provider_WatchPodsServer) error {
	events := make(chan *pb.PodEvent, 4096)
	p.mu.Lock()
	p.watchers[events] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.watchers, events)
		p.mu.Unlock()
	}()
	if err := stream.Send(&pb.PodEvent{}); err != nil {
		return err
	}
	for {
		select {
		case event := <-events:
			if err := stream.Send(event); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (p *provider) Logs(r *pb.LogsRequest, stream pb.Provider_LogsServer) error {
	for sent := 0; stream.Context().Err() == nil; time.Sleep(100 * time.Millisecond) {
		p.mu.Lock()
		var found *container
		if of := p.pods[r.Id.Uid]; of != nil {
			for _, c := range of.containers {
				if c.status.Name == r.Container {
					found = c
				}
			}
		}
		if found == nil {
			p.mu.Unlock()
			return status.Error(codes.NotFound, "no such container")
		}
		data := bytes.Clone(found.log.Bytes()[sent:])
		ended := found.status.GetRunning() == nil
		p.mu.Unlock()
		sent += len(data)
		if err := stream.Send(&pb.LogsResponse{Data: data}); err != nil {
			return err
		}
		if ended || !r.Follow {
			return nil
		}
	}
	return nil
}

func main() {
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterProviderServer(server, &provider{pods: map[string]*pod{}, watchers: map[chan *pb.PodEvent]bool{}})
	log.Println("serving")
	log.Fatal(server.Serve(listener))
}
