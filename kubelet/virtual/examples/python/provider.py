#!/usr/bin/env python3
"""A provider of virtual nodes: each container is a plain child process of this program, its log is a file.

    pip install -r requirements.txt
    python3 provider.py /run/provider.sock ../../proto

Nothing is isolated and no image is pulled: this shows the protocol, and is no way to run what you do not trust.
"""
import json, os, queue, subprocess, sys, tempfile, threading, time
from concurrent import futures

import grpc

SOCKET, PROTO = sys.argv[1], sys.argv[2]
sys.path.insert(0, PROTO)
pb, services = grpc.protos_and_services("provider.proto")


class Pod:
    """The processes of one pod."""

    def __init__(self, id, spec):
        self.id, self.ended, self.processes = id, {}, {}
        self.folder = tempfile.mkdtemp(prefix="pod-")
        self.started = time.time_ns()
        for container in spec["containers"]:
            command = container.get("command", []) + container.get("args", [])
            env = {v["name"]: v.get("value", "") for v in container.get("env", [])}
            log = open(self.log(container["name"]), "wb")
            self.processes[container["name"]] = subprocess.Popen(
                command, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self, container):
        return os.path.join(self.folder, container + ".log")

    def status(self):
        status = pb.PodStatus(id=self.id, pod_ips=["127.0.0.1"])
        for name, process in self.processes.items():
            container = status.containers.add(name=name, container_id=f"python://{process.pid}")
            if name in self.ended:
                code, at = self.ended[name]
                container.terminated.CopyFrom(
                    pb.Terminated(exit_code=code, started_at=self.started, finished_at=at))
            else:
                container.running.started_at = self.started
                container.ready = True
        return status


class Provider(services.ProviderServicer):
    def __init__(self):
        self.pods, self.watchers, self.lock = {}, [], threading.RLock()

    def tell(self, **event):
        with self.lock:
            for watcher in self.watchers:
                watcher.put(pb.PodEvent(**event))

    def wait(self, pod, name, process):
        code = process.wait()
        with self.lock:
            pod.ended[name] = (code if code >= 0 else 128 - code, time.time_ns())
            self.tell(status=pod.status())

    def Info(self, request, context):
        return pb.InfoResponse(name="python", version="1", calls=["Logs"])

    def ListPods(self, request, context):
        with self.lock:
            return pb.ListPodsResponse(pods=[pod.status() for pod in self.pods.values()])

    def CreatePod(self, request, context):
        with self.lock:
            if request.id.uid in self.pods:
                return pb.CreatePodResponse()
            spec = json.loads(request.pod)["spec"]
            for index, container in enumerate(spec["containers"]):
                if not container.get("command"):
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT,
                                  f"spec.containers[{index}].command: images are not pulled, so a command must be given")
            try:
                pod = self.pods[request.id.uid] = Pod(request.id, spec)
            except OSError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"spec.containers: {error}")
            for name, process in pod.processes.items():
                threading.Thread(target=self.wait, args=(pod, name, process), daemon=True).start()
            self.tell(status=pod.status())
        return pb.CreatePodResponse()

    def DeletePod(self, request, context):
        with self.lock:
            pod = self.pods.get(request.id.uid)
        if pod is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such pod")
        threading.Thread(target=self.end, args=(pod, request.grace_period_seconds), daemon=True).start()
        return pb.DeletePodResponse()

    def end(self, pod, grace):
        deadline = time.time() + grace
        for process in pod.processes.values():
            process.terminate()
        for process in pod.processes.values():
            try:
                process.wait(max(0, deadline - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
        with self.lock:
            self.pods.pop(pod.id.uid, None)
            self.tell(gone=pod.id)

    def WatchPods(self, request, context):
        events = queue.Queue()
        with self.lock:
            self.watchers.append(events)
        context.add_callback(lambda: events.put(None))
        yield pb.PodEvent()
        yield from iter(events.get, None)
        with self.lock:
            self.watchers.remove(events)

    def Logs(self, request, context):
        with self.lock:
            pod = self.pods.get(request.id.uid)
        if pod is None or request.container not in pod.processes:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such container")
        with open(pod.log(request.container), "rb") as log:
            if request.HasField("tail_lines"):
                lines = log.read().splitlines(keepends=True)
                yield pb.LogsResponse(data=b"".join(lines[len(lines) - min(len(lines), request.tail_lines):]))
            while context.is_active():
                ended = request.container in pod.ended
                data = log.read(32768)
                if data:
                    yield pb.LogsResponse(data=data)
                elif ended or not request.follow:
                    return
                else:
                    time.sleep(0.1)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
services.add_ProviderServicer_to_server(Provider(), server)
server.add_insecure_port("unix:" + SOCKET)
server.start()
print("serving", flush=True)
server.wait_for_termination()
