// Package deploy_test checks that the deployment files match the programs: every flag,
// variable, port and metric that they name exists, containers are confined (no root, no
// unpinned images), and the generated parts of the documentation are up to date.
// Nothing is started; the tests read the files, the flags and the source.
package deploy_test

import (
	"bytes"
	"encoding/xml"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v4"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka/properties"
	"millrace/pipeline/producer"
	"millrace/pipeline/programs"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(readFile(t, path)), into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// binaries are the constructors of the commands, by service.
var binaries = map[string]func(*cli.Env) *cobra.Command{
	"producer":  producer.Command,
	"processor": programs.Processor,
	"projector": programs.Projector,
}

// probePorts are the ports for probes and metrics in containers, by service.
var probePorts = map[string]string{"processor": "9111", "projector": "9112", "producer": "9113"}

// port returns the port that a service listens on by default.
func port(t *testing.T, program string) string {
	t.Helper()
	run, _, err := binaries[program](&cli.Env{}).Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	_, p, err := net.SplitHostPort(run.Flag("listen").DefValue)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var variableForm = regexp.MustCompile(`MILLRACE_[A-Z0-9_]*[A-Z0-9]`)

// variables returns the environment variables that a command reads.
func variables(t *testing.T, cmd *cobra.Command) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		for _, v := range variableForm.FindAllString(f.Usage, -1) {
			known[v] = true
		}
	})
	if known["MILLRACE_REGISTRY"] { // the help text abbreviates these
		for _, v := range []string{"USER", "PASSWORD", "PASSWORD_FILE", "TOKEN", "TOKEN_FILE"} {
			known["MILLRACE_REGISTRY_"+v] = true
		}
	}
	if known["MILLRACE_BROKERS"] {
		for _, p := range propertyNames(t) {
			known[properties.EnvName(p)], known[properties.EnvName(p)+"_FILE"] = true, true
		}
	}
	return known
}

// propertyNames returns the names of the Kafka client settings that -X list shows.
func propertyNames(t *testing.T) (names []string) {
	t.Helper()
	var list bytes.Buffer
	if err := properties.ListProperties(&list); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(list.String()) {
		if line == "\n" {
			break
		}
		names = append(names, strings.Fields(line)[0])
	}
	if len(names) < 10 {
		t.Fatalf("-X list shows only %v", names)
	}
	return names
}

// tryCommand runs a program with a command line and an environment, without a broker.
// With -X dump, the program parses both, reads the topology and the settings of the
// Kafka client, prints the settings and exits.
func tryCommand(t *testing.T, program string, args []string, env map[string]string) {
	t.Helper()
	cmd, _, err := binaries[program](&cli.Env{}).Find(args)
	if err != nil {
		t.Errorf("%s %v: %v", program, args, err)
		return
	}
	known := variables(t, cmd)
	for name := range env {
		if strings.HasPrefix(name, "MILLRACE_") && !known[name] {
			t.Errorf("%s: the program does not read the variable %s", program, name)
		}
	}
	var stderr, stdout bytes.Buffer
	e := &cli.Env{
		Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Now: time.Now,
		LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	}
	code := e.Main(append(slices.Clone(args), "-X", "dump"), binaries[program])
	if code != cli.ExitOK || !strings.Contains(stdout.String(), env["MILLRACE_BROKERS"]) {
		t.Errorf("%s %v with %v: exit code %d\n%s%s", program, args, env, code, stdout.String(), stderr.String())
	}
}

// isHealthcheck reports whether the health check of a container runs the program's
// healthcheck command.
func isHealthcheck(t *testing.T, program string, test []string) bool {
	t.Helper()
	if len(test) < 3 || test[0] != "CMD" || test[1] != "/"+program {
		return false
	}
	cmd, flags, err := binaries[program](&cli.Env{}).Find(test[2:])
	return err == nil && cmd.Name() == "healthcheck" && cmd.ParseFlags(flags) == nil
}

// compose is the part of docker-compose.yml that the tests check.
type compose struct {
	Services map[string]service
	Volumes  map[string]any
}

type service struct {
	Image       string
	Build       struct{ Target string }
	User        string
	Profiles    []string
	Command     []string
	Environment map[string]string
	Ports       []string
	Volumes     []string
	Tmpfs       []string
	Healthcheck struct {
		Test    []string
		Disable bool
	}
	ReadOnly    bool                                  `yaml:"read_only"`
	CapDrop     []string                              `yaml:"cap_drop"`
	SecurityOpt []string                              `yaml:"security_opt"`
	MemLimit    string                                `yaml:"mem_limit"`
	StopGrace   time.Duration                         `yaml:"stop_grace_period"`
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
}

var interpolated = regexp.MustCompile(`\$\{(\w+):-([^}]*)\}`)

func readCompose(t *testing.T) (c compose) {
	t.Helper()
	data := interpolated.ReplaceAllString(readFile(t, "../docker-compose.yml"), "$2")
	if err := yaml.Unmarshal([]byte(data), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Services) < 7 {
		t.Fatalf("docker-compose.yml has only the services %v", slices.Sorted(maps.Keys(c.Services)))
	}
	return c
}

func TestComposeUsesValidFlagsAndVariables(t *testing.T) {
	c := readCompose(t)
	for name := range binaries {
		s, ok := c.Services[name]
		if !ok {
			t.Errorf("docker-compose.yml does not start the %s", name)
			continue
		}
		if s.Build.Target != name || !strings.HasPrefix(s.Image, "millrace/"+name+":") {
			t.Errorf("%s has the image %s and the build target %q", name, s.Image, s.Build.Target)
		}
		env := maps.Clone(s.Environment)
		if env["MILLRACE_TOPOLOGY"] != "/etc/millrace/topology.yaml" || !slices.Contains(s.Volumes, "./topology.yaml:/etc/millrace/topology.yaml:ro") {
			t.Errorf("%s reads the topology %q, with the volumes %v", name, env["MILLRACE_TOPOLOGY"], s.Volumes)
		}
		env["MILLRACE_TOPOLOGY"] = "../topology.yaml"
		tryCommand(t, name, s.Command, env)
		if want := c.inside(t, "kafka", "KAFKA_ADVERTISED_LISTENERS", "INSIDE://"); env["MILLRACE_BROKERS"] != want {
			t.Errorf("%s connects to Kafka at %q, want %q", name, env["MILLRACE_BROKERS"], want)
		}
		if want := "http://registry:" + c.Services["registry"].Environment["KARAPACE_PORT"]; env["MILLRACE_REGISTRY"] != want {
			t.Errorf("%s connects to the registry at %q, want %q", name, env["MILLRACE_REGISTRY"], want)
		}
	}
	if got := c.Services["producer"].Profiles; !slices.Equal(got, []string{"inject"}) {
		t.Errorf("the producer has the profiles %v, want inject only", got)
	}
}

// inside returns the address with a prefix from the list in a variable of a service.
func (c compose) inside(t *testing.T, service, variable, prefix string) string {
	t.Helper()
	for _, l := range strings.Split(c.Services[service].Environment[variable], ",") {
		if addr, ok := strings.CutPrefix(l, prefix); ok {
			return addr
		}
	}
	t.Errorf("%s: %s has no address with the prefix %s", service, variable, prefix)
	return ""
}

func TestComposeAddressesAgree(t *testing.T) {
	c := readCompose(t)
	var prometheus struct {
		ScrapeConfigs []struct {
			JobName       string                       `yaml:"job_name"`
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	readYAML(t, "prometheus/prometheus.yml", &prometheus)
	targets := map[string]string{}
	for _, s := range prometheus.ScrapeConfigs {
		targets[s.JobName] = s.StaticConfigs[0].Targets[0]
	}
	dockerfile := readFile(t, "../Dockerfile")
	if strings.Contains(dockerfile, "MILLRACE_LISTEN=") || strings.Contains(dockerfile, "MILLRACE_INSECURE_HTTP") {
		t.Error("an image opens more than the port for probes by default")
	}
	for name, p := range probePorts {
		if !strings.Contains(dockerfile, "ENV MILLRACE_PROBE_LISTEN=0.0.0.0:"+p) || !strings.Contains(dockerfile, "EXPOSE "+p+"\n") {
			t.Errorf("the image of the %s does not listen on and expose %s", name, p)
		}
		if name == "producer" {
			continue // it has no server there
		}
		if got := c.Services[name].Environment["MILLRACE_PROBE_LISTEN"]; got != "0.0.0.0:"+p {
			t.Errorf("%s answers probes at %q, want 0.0.0.0:%s, so Prometheus can reach it", name, got, p)
		}
		if got := targets[name]; got != name+":"+p {
			t.Errorf("Prometheus scrapes the %s at %q, want %s:%s", name, got, name, p)
		}
		if !slices.Contains(c.Services[name].Ports, "127.0.0.1:"+p+":"+p) {
			t.Errorf("%s publishes the ports %v on localhost, want %s", name, c.Services[name].Ports, p)
		}
	}
	api := port(t, "projector")
	if s := c.Services["projector"]; s.Environment["MILLRACE_LISTEN"] != "0.0.0.0:"+api || !slices.Contains(s.Ports, "127.0.0.1:"+api+":"+api) {
		t.Errorf("the projector listens on %q and publishes %v, want %s", s.Environment["MILLRACE_LISTEN"], s.Ports, api)
	}
	for name, s := range c.Services {
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s: the port %s is open to other machines, but has no authentication", name, p)
			}
		}
	}
	// A client on this machine finds Kafka and the registry by its default addresses.
	_, brokerPort, _ := net.SplitHostPort(properties.DefaultBroker)
	if got := c.inside(t, "kafka", "KAFKA_ADVERTISED_LISTENERS", "LOCAL://"); got != "localhost:"+brokerPort {
		t.Errorf("Kafka advertises %q to clients on this machine; the programs' default is %s", got, properties.DefaultBroker)
	}
	if got, want := c.Services["registry"].Ports, cli.DefaultRegistry[strings.LastIndex(cli.DefaultRegistry, ":")+1:]; len(got) != 1 || !strings.HasPrefix(got[0], "127.0.0.1:"+want+":") {
		t.Errorf("the registry publishes %v on this machine; the programs' default is %s", got, cli.DefaultRegistry)
	}
}

var pinned = regexp.MustCompile(`:v?\d+\.\d+\.\d+(-[a-z0-9.]+)?$`)

// writable lists the services whose file system cannot be read-only. The reasons are in
// docker-compose.yml.
var writable = []string{"kafka", "registry"}

func TestComposeConfinesItsContainers(t *testing.T) {
	c := readCompose(t)
	total := 0
	for name, s := range c.Services {
		own := binaries[name] != nil
		if !own && !pinned.MatchString(s.Image) {
			t.Errorf("%s: the image %s is not pinned to a version", name, s.Image)
		}
		// The user of our own images is set in the Dockerfile; see TestImagesHaveNoRootAndNoShell.
		if user, _, _ := strings.Cut(s.User, ":"); !own && (user == "" || user == "0" || user == "root") {
			t.Errorf("%s runs as user %q", name, s.User)
		}
		if s.ReadOnly == slices.Contains(writable, name) {
			t.Errorf("%s: read_only is %v", name, s.ReadOnly)
		}
		if !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s keeps privileges: cap_drop %v, security_opt %v", name, s.CapDrop, s.SecurityOpt)
		}
		mib, err := strconv.Atoi(strings.TrimSuffix(s.MemLimit, "m"))
		if err != nil {
			t.Errorf("%s: mem_limit is %q, want a number followed by m", name, s.MemLimit)
		}
		total += mib
		if limit := s.Environment["GOMEMLIMIT"]; limit != "" {
			heap, err := strconv.Atoi(strings.TrimSuffix(limit, "MiB"))
			switch {
			case err != nil:
				t.Errorf("%s: GOMEMLIMIT is %s", name, limit)
			case name == "projector" && (heap > mib-storeMemory || heap < mib/2):
				t.Errorf("%s: GOMEMLIMIT is %s, but the store takes up to %d MiB beside it, and mem_limit is %s", name, limit, storeMemory, s.MemLimit)
			case name != "projector" && (heap*100 < mib*80 || heap*100 > mib*92):
				t.Errorf("%s: GOMEMLIMIT is %s, want about 90%% of mem_limit %s", name, limit, s.MemLimit)
			}
			if memory, err := strconv.Atoi(s.Environment["MILLRACE_MEMORY"]); name == "projector" && (err != nil || 2*memory > heap) {
				t.Errorf("%s: MILLRACE_MEMORY is %q, want at most half of GOMEMLIMIT %s", name, s.Environment["MILLRACE_MEMORY"], limit)
			}
		} else if own {
			t.Errorf("%s has no GOMEMLIMIT", name)
		}
		switch {
		case name == "producer":
			if !s.Healthcheck.Disable {
				t.Error("the producer exits when it is done, so it must have no health check")
			}
		case own:
			if !isHealthcheck(t, name, s.Healthcheck.Test) {
				t.Errorf("%s: the health check is %v", name, s.Healthcheck.Test)
			}
		case len(s.Healthcheck.Test) < 2:
			t.Errorf("%s has no health check", name)
		}
		if own && s.StopGrace <= transactionTimeout(t)+drain {
			t.Errorf("%s is killed %v after a stop request, possibly during its last transaction", name, s.StopGrace)
		}
		for on, d := range s.DependsOn {
			if d.Condition != "service_healthy" {
				t.Errorf("%s waits for the condition %[3]s of %[2]s, want service_healthy", name, on, d.Condition)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(from, "./") {
				if _, err := os.Stat(filepath.Join("..", from)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			} else if _, ok := c.Volumes[from]; !ok {
				t.Errorf("%s: there is no volume %s", name, from)
			}
		}
	}
	if total > 2560 {
		t.Errorf("the memory limits add up to %d MiB, want at most 2560", total)
	}
}

// storeMemory is what a projector takes beside the Go heap, in MiB: measured 129 and 155
// with 1.2 million aggregates and two limits of the heap.
const storeMemory = 160

// drain is the time that a stop takes in addition to the transaction: 5 s for the
// current batch and 5 s for HTTP requests in flight.
const drain = 10 * time.Second

// transactionTimeout returns the default of --transaction-timeout.
func transactionTimeout(t *testing.T) time.Duration {
	t.Helper()
	run, _, err := programs.Processor(&cli.Env{}).Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := time.ParseDuration(run.Flag("transaction-timeout").DefValue)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestComposeRunsTheTestedKafkaVersion(t *testing.T) {
	var pom struct {
		Version string `xml:"properties>kafka.version"`
	}
	if err := xml.Unmarshal([]byte(readFile(t, "../pipeline/e2e/kafkatest/pom.xml")), &pom); err != nil {
		t.Fatal(err)
	}
	if got := readCompose(t).Services["kafka"].Image; got != "apache/kafka:"+pom.Version || pom.Version == "" {
		t.Errorf("docker-compose.yml has %s; the tests use version %q", got, pom.Version)
	}
}

func TestImagesHaveNoRootAndNoShell(t *testing.T) {
	dockerfile := readFile(t, "../Dockerfile")
	stages := regexp.MustCompile(`(?m)^FROM (?:--\S+ )?(\S+) AS (\S+)$`).FindAllStringSubmatch(dockerfile, -1)
	from := map[string]string{}
	for _, s := range stages {
		from[s[2]] = s[1]
	}
	for name := range binaries {
		if from[name] != "base" {
			t.Errorf("the image of the %s is based on %q, want base", name, from[name])
		}
		if !strings.Contains(dockerfile, `ENTRYPOINT ["/`+name+`"]`) {
			t.Errorf("the image of the %s does not have /%[1]s as its entry point", name)
		}
	}
	if from["base"] != "scratch" {
		t.Errorf("the stage base is based on %q, want scratch", from["base"])
	}
	if users := regexp.MustCompile(`(?m)^USER (.*)$`).FindAllStringSubmatch(dockerfile, -1); len(users) != 1 || users[0][1] != "65532:65532" {
		t.Errorf("the images run as %v, want 65532:65532", users)
	}
	for _, want := range []string{"CGO_ENABLED=0", "-trimpath", "ARG VERSION", "ca-certificates.crt", "zoneinfo.zip"} {
		if !strings.Contains(dockerfile, want) {
			t.Errorf("the Dockerfile does not contain %s", want)
		}
	}
	if !pinned.MatchString(from["build"]) {
		t.Errorf("the compiler image %s is not pinned to a version", from["build"])
	}
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(readFile(t, "../go.mod"))
	if !strings.HasPrefix(from["build"], "golang:"+goVersion[1]+".") {
		t.Errorf("the compiler image is %s, but go.mod requires Go %s", from["build"], goVersion[1])
	}
	// The build sets the same version variable as the Makefile, and the build context
	// contains all sources.
	ldflag := regexp.MustCompile(`-X (\S+)=`)
	have, want := ldflag.FindStringSubmatch(dockerfile), ldflag.FindStringSubmatch(readFile(t, "../Makefile"))
	if have == nil || want == nil || have[1] != want[1] {
		t.Errorf("the Dockerfile links the version to %v, the Makefile to %v", have, want)
	}
	ignored := readFile(t, "../.dockerignore")
	for _, dir := range []string{"go.mod", "go.sum", "cmd", "pipeline", "schemas"} {
		if !strings.Contains(ignored, "\n!"+dir+"\n") {
			t.Errorf(".dockerignore excludes %s", dir)
		}
	}
}
