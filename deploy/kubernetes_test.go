package deploy_test

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
)

// object is the part of a Kubernetes manifest that the tests check.
type object struct {
	file     string
	Kind     string
	Metadata struct {
		Name   string
		Labels map[string]string
	}
	Data map[string]string
	Spec struct {
		ServiceName    string `yaml:"serviceName"`
		Replicas       int
		MaxUnavailable int `yaml:"maxUnavailable"`
		Ports          []struct{ Port int }
		ClusterIP      string `yaml:"clusterIP"`

		PublishNotReadyAddresses bool `yaml:"publishNotReadyAddresses"`

		Selector             yaml.Node
		VolumeClaimTemplates []object `yaml:"volumeClaimTemplates"`
		Template             struct {
			Metadata struct{ Labels map[string]string }
			Spec     pod
		}
		Ingress []struct{ Ports []struct{ Port int } }

		ScaleTargetRef  struct{ Kind, Name string } `yaml:"scaleTargetRef"`
		MaxReplicaCount int                         `yaml:"maxReplicaCount"`
		Triggers        []struct {
			Type     string
			Metadata map[string]string
		}
	}
}

type pod struct {
	AutomountServiceAccountToken *bool `yaml:"automountServiceAccountToken"`
	TerminationGrace             int   `yaml:"terminationGracePeriodSeconds"`
	SecurityContext              struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
		RunAsUser    int  `yaml:"runAsUser"`
		FSGroup      int  `yaml:"fsGroup"`
	} `yaml:"securityContext"`
	Containers []container
	Volumes    []struct {
		Name      string
		ConfigMap struct{ Name string } `yaml:"configMap"`
		Secret    struct {
			SecretName string `yaml:"secretName"`
		}
	}
}

type container struct {
	Name, Image string
	Args        []string
	EnvFrom     []struct {
		ConfigMapRef struct{ Name string } `yaml:"configMapRef"`
	} `yaml:"envFrom"`
	Env []struct {
		Name, Value string
		ValueFrom   struct {
			FieldRef struct {
				FieldPath string `yaml:"fieldPath"`
			} `yaml:"fieldRef"`
		} `yaml:"valueFrom"`
	}
	Ports []struct {
		ContainerPort int `yaml:"containerPort"`
	}
	StartupProbe    probe `yaml:"startupProbe"`
	LivenessProbe   probe `yaml:"livenessProbe"`
	ReadinessProbe  probe `yaml:"readinessProbe"`
	Resources       struct{ Requests, Limits map[string]string }
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
	Timeout int                         `yaml:"timeoutSeconds"`
}

func readManifests(t *testing.T) (all []object) {
	t.Helper()
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found only the manifests %v (%v)", files, err)
	}
	for _, file := range files {
		if filepath.Base(file) == "topology.yaml" {
			continue // a file of a generated ConfigMap
		}
		decode := yaml.NewDecoder(strings.NewReader(readFile(t, file)))
		for {
			o := object{file: file}
			err := decode.Decode(&o)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, o)
		}
	}
	for _, g := range readKustomization(t).ConfigMapGenerator {
		o := object{file: "kubernetes/kustomization.yaml", Kind: "ConfigMap", Data: map[string]string{}}
		o.Metadata.Name = g.Name
		for _, name := range g.Files {
			o.Data[name] = readFile(t, "kubernetes/"+name)
		}
		for _, name := range g.Envs {
			for line := range strings.Lines(readFile(t, "kubernetes/"+name)) {
				if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
					o.Data[key] = value
				}
			}
		}
		all = append(all, o)
	}
	return all
}

// kustomization is the part of kustomization.yaml that the tests check.
type kustomization struct {
	Resources          []string
	ConfigMapGenerator []struct {
		Name        string
		Files, Envs []string
		Options     generatorOptions
	} `yaml:"configMapGenerator"`
	GeneratorOptions generatorOptions `yaml:"generatorOptions"`
}

type generatorOptions struct {
	DisableNameSuffixHash bool `yaml:"disableNameSuffixHash"`
}

func readKustomization(t *testing.T) (k kustomization) {
	t.Helper()
	readYAML(t, "kubernetes/kustomization.yaml", &k)
	return k
}

// The hash in the name of a generated ConfigMap changes the template of the pods.
func TestAChangedConfigMapRestartsThePods(t *testing.T) {
	k := readKustomization(t)
	generated := map[string]bool{}
	for _, g := range k.ConfigMapGenerator {
		generated[g.Name] = !g.Options.DisableNameSuffixHash && !k.GeneratorOptions.DisableNameSuffixHash
	}
	all := readManifests(t)
	for _, name := range []string{"processor", "projector"} {
		p := find(t, all, "StatefulSet", name).Spec.Template.Spec
		for _, v := range p.Volumes {
			if v.ConfigMap.Name != "" && !generated[v.ConfigMap.Name] {
				t.Errorf("%s mounts %s, whose name has no hash", name, v.ConfigMap.Name)
			}
		}
		for _, from := range p.Containers[0].EnvFrom {
			if !generated[from.ConfigMapRef.Name] {
				t.Errorf("%s takes variables from %s, whose name has no hash", name, from.ConfigMapRef.Name)
			}
		}
	}
}

// A pod has a DNS name only through the headless Service of its StatefulSet.
func TestProjectorPodsAdvertiseANameThatOtherPodsResolve(t *testing.T) {
	all := readManifests(t)
	set := find(t, all, "StatefulSet", "projector")
	service := find(t, all, "Service", set.Spec.ServiceName)
	if service.Spec.ClusterIP != "None" || !service.Spec.PublishNotReadyAddresses {
		t.Errorf("the Service %s is not headless, or has only ready pods", set.Spec.ServiceName)
	}
	c := set.Spec.Template.Spec.Containers[0]
	instance, got := -1, ""
	for i, e := range c.Env {
		switch e.Name {
		case "MILLRACE_INSTANCE":
			instance = i
		case "MILLRACE_ADVERTISE":
			if got = e.Value; instance < 0 {
				t.Error("MILLRACE_INSTANCE comes after the variable that uses it, so Kubernetes does not replace it")
			}
		}
	}
	want := "$(MILLRACE_INSTANCE)." + set.Spec.ServiceName + ":" + strconv.Itoa(c.Ports[0].ContainerPort)
	if got != want {
		t.Errorf("pods advertise %q, want %q", got, want)
	}
}

func find(t *testing.T, all []object, kind, name string) object {
	t.Helper()
	i := slices.IndexFunc(all, func(o object) bool { return o.Kind == kind && o.Metadata.Name == name })
	if i < 0 {
		t.Fatalf("there is no %s %s", kind, name)
	}
	return all[i]
}

func TestKubernetesUsesValidFlagsAndVariables(t *testing.T) {
	all := readManifests(t)
	for _, name := range []string{"processor", "projector"} {
		set := find(t, all, "StatefulSet", name)
		c := set.Spec.Template.Spec.Containers[0]
		env := map[string]string{}
		for _, from := range c.EnvFrom {
			maps.Copy(env, find(t, all, "ConfigMap", from.ConfigMapRef.Name).Data)
		}
		for _, e := range c.Env {
			env[e.Name] = e.Value
			if from := e.ValueFrom.FieldRef.FieldPath; from != "" {
				env[e.Name] = name + "-0"
				if e.Name == "MILLRACE_INSTANCE" && from != "metadata.name" {
					t.Errorf("%s: MILLRACE_INSTANCE comes from %s, want metadata.name, which a restarted pod keeps", name, from)
				}
			}
		}
		if env["MILLRACE_INSTANCE"] == "" || env["MILLRACE_STATIC"] != "true" {
			t.Errorf("%s is not a static member: instance %q, static %q", name, env["MILLRACE_INSTANCE"], env["MILLRACE_STATIC"])
		}
		mounted := map[string]string{}
		for _, m := range c.VolumeMounts {
			mounted[m.Name] = m.MountPath
		}
		for _, v := range set.Spec.Template.Spec.Volumes {
			if v.ConfigMap.Name == "" {
				continue
			}
			data := find(t, all, "ConfigMap", v.ConfigMap.Name).Data
			if env["MILLRACE_TOPOLOGY"] != mounted[v.Name]+"/topology.yaml" || data["topology.yaml"] == "" {
				t.Errorf("%s reads the topology %s, but %s is mounted at %s", name, env["MILLRACE_TOPOLOGY"], v.ConfigMap.Name, mounted[v.Name])
			}
		}
		// The files of the Secrets exist only in a cluster; the test uses placeholders.
		dir := t.TempDir()
		for k, v := range env {
			if strings.HasPrefix(v, mounted["kafka"]+"/") || mounted["http"] != "" && strings.HasPrefix(v, mounted["http"]+"/") {
				env[k] = filepath.Join(dir, filepath.Base(v))
				if err := os.WriteFile(env[k], []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		env["MILLRACE_TOPOLOGY"] = "../topology.yaml"
		tryCommand(t, name, c.Args, env)

		service := find(t, all, "Service", set.Spec.ServiceName)
		policy := find(t, all, "NetworkPolicy", name)
		open := map[string]string{"MILLRACE_PROBE_LISTEN": probePorts[name]}
		if name == "projector" {
			open["MILLRACE_LISTEN"] = port(t, name)
			if env["MILLRACE_AUTH_FILE"] == "" || env["MILLRACE_TOKEN_FILE"] == "" {
				t.Error("the projector answers everyone, or has no token for other pods")
			}
		}
		if env["MILLRACE_INSECURE_HTTP"] != "" || name == "processor" && env["MILLRACE_LISTEN"] != "" {
			t.Errorf("%s answers everyone", name)
		}
		if len(c.Ports) != len(open) || len(service.Spec.Ports) != len(open) || len(policy.Spec.Ingress) != len(open) {
			t.Errorf("%s: container, Service or NetworkPolicy have more or fewer ports than %v", name, open)
		}
		for variable, text := range open {
			p, _ := strconv.Atoi(text)
			ports := slices.ContainsFunc(c.Ports, func(o struct {
				ContainerPort int `yaml:"containerPort"`
			}) bool {
				return o.ContainerPort == p
			})
			services := slices.ContainsFunc(service.Spec.Ports, func(o struct{ Port int }) bool { return o.Port == p })
			allowed := slices.ContainsFunc(policy.Spec.Ingress, func(o struct{ Ports []struct{ Port int } }) bool { return o.Ports[0].Port == p })
			if env[variable] != "0.0.0.0:"+text || !ports || !services || !allowed {
				t.Errorf("%s: the ports of container, Service, NetworkPolicy and %s are not all %d", name, variable, p)
			}
		}
		for _, probe := range []struct {
			probe
			path string
		}{{c.StartupProbe, "/startupz"}, {c.LivenessProbe, "/livez"}, {c.ReadinessProbe, "/readyz"}} {
			// The program's checks may take 2 s, so the probe needs a longer timeout.
			if probe.HTTPGet.Path != probe.path || probe.HTTPGet.Port != "probes" || probe.Timeout < 3 {
				t.Errorf("%s: the probe for %s is %+v", name, probe.path, probe.probe)
			}
		}
	}
}

// The file of the ConfigMap is the repository's topology, without the comment that names
// the JSON Schema for editors. -update rewrites it.
func TestKubernetesRunsTheTopologyOfTheRepository(t *testing.T) {
	const path = "kubernetes/topology.yaml"
	want := readFile(t, "../topology.yaml")
	if first, rest, _ := strings.Cut(want, "\n"); strings.HasPrefix(first, "# yaml-language-server:") {
		want = rest
	}
	if readFile(t, path) == want {
		return
	}
	if !*update {
		t.Fatalf("%s differs from the topology.yaml of the repository; go test ./deploy -update rewrites it", path)
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestKubernetesConfinesItsPods(t *testing.T) {
	all := readManifests(t)
	for _, name := range []string{"processor", "projector"} {
		set := find(t, all, "StatefulSet", name)
		p := set.Spec.Template.Spec
		if len(p.Containers) != 1 {
			t.Fatalf("%s has %d containers", name, len(p.Containers))
		}
		c := p.Containers[0]
		s := c.SecurityContext
		if !p.SecurityContext.RunAsNonRoot || p.SecurityContext.RunAsUser != 65532 || !s.ReadOnlyRootFilesystem ||
			s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) ||
			p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
			t.Errorf("%s keeps privileges: %+v, %+v", name, p.SecurityContext, s)
		}
		if !pinned.MatchString(c.Image) || !strings.HasSuffix(strings.Split(c.Image, ":")[0], "/millrace/"+name) {
			t.Errorf("%s has the image %s, want .../millrace/%[1]s with a pinned version", name, c.Image)
		}
		if grace := time.Duration(p.TerminationGrace) * time.Second; grace <= transactionTimeout(t)+drain {
			t.Errorf("%s is killed %v after a stop request, possibly during its last transaction", name, grace)
		}
		if c.Resources.Requests["memory"] == "" || c.Resources.Requests["cpu"] == "" || c.Resources.Limits["memory"] == "" || c.Resources.Limits["cpu"] != "" {
			t.Errorf("%s: resources are %+v; want requests, a memory limit and no CPU limit", name, c.Resources)
		}
		if pdb := find(t, all, "PodDisruptionBudget", name); pdb.Spec.MaxUnavailable != 1 {
			t.Errorf("%s: the disruption budget allows %d unavailable pods, want 1", name, pdb.Spec.MaxUnavailable)
		}
		if got := set.Spec.Template.Metadata.Labels["app.kubernetes.io/name"]; got != name {
			t.Errorf("the pods of %s have the label app.kubernetes.io/name %q, which services select by", name, got)
		}
	}
	projector := find(t, all, "StatefulSet", "projector").Spec
	if len(projector.VolumeClaimTemplates) != 1 || projector.VolumeClaimTemplates[0].Metadata.Name != "data" || projector.Template.Spec.SecurityContext.FSGroup != 65532 {
		t.Error("the projector has no writable volume for its data")
	}
	listed := readKustomization(t)
	for _, o := range all {
		file := filepath.Base(o.file)
		unlisted := file == "kustomization.yaml" || file == "scaling.yaml"
		if unlisted == slices.Contains(listed.Resources, file) {
			t.Errorf("kustomization.yaml lists %s: %v, want %v", file, unlisted, !unlisted)
		}
	}
}

func TestScalingUsesAnExistingMetric(t *testing.T) {
	all := readManifests(t)
	scaled := find(t, all, "ScaledObject", "processor")
	if to := scaled.Spec.ScaleTargetRef; to.Kind != "StatefulSet" || to.Name != find(t, all, "StatefulSet", "processor").Metadata.Name {
		t.Errorf("scaling.yaml scales %+v, want the StatefulSet processor", to)
	}
	have := allMetrics(t)
	for _, trigger := range scaled.Spec.Triggers {
		if trigger.Metadata["ignoreNullValues"] != "false" {
			t.Error("a query without a result scales down")
		}
		q := query{"scaling.yaml", trigger.Metadata["query"]}
		metrics, _ := q.names()
		if len(metrics) != 1 || have[metrics[0]] == nil {
			t.Errorf("the query %q uses the metrics %v, want one that the code has", q.expr, metrics)
		}
	}
	// Sessions in excess of the partitions would be idle.
	sessions, _ := strconv.Atoi(find(t, all, "ConfigMap", "millrace-client").Data["MILLRACE_SESSIONS"])
	var topology struct {
		Topics    map[string]struct{ Partitions int }
		Pipelines map[string]struct{ From string }
	}
	readYAML(t, "../topology.yaml", &topology)
	most := 0
	for _, p := range topology.Pipelines {
		most = max(most, topology.Topics[p.From].Partitions)
	}
	if n := scaled.Spec.MaxReplicaCount; n*sessions > most || most == 0 {
		t.Errorf("%d pods with %d sessions each are too many for %d partitions", n, sessions, most)
	}
}
