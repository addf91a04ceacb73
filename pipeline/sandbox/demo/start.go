package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"millrace/pipeline/private"
	"millrace/pipeline/sandbox"
)

// start starts broker, registry, processor and projector, and waits until they are ready.
func (d *demo) start(ctx context.Context) (err error) {
	if d.dir, err = private.TempDir("millrace-"); err != nil {
		return err
	}
	if d.workers, err = newWorkers(d.dial); err != nil {
		return err
	}
	d.external = len(d.brokers) > 0
	d.box, err = sandbox.New(sandbox.Config{KafkaAddr: d.listen(kafkaAddress), RegistryAddr: d.listen(registryAddress), NoBroker: d.external})
	if err != nil {
		return err
	}
	d.registry = d.box.RegistryURL()
	if !d.external {
		d.brokers = d.box.Brokers()
	}
	d.progress("Kafka at %s, schema registry at %s", strings.Join(d.brokers, ","), d.registry)
	if err := errors.Join(d.spawn("processor"), d.spawn("projector")); err != nil {
		return err
	}
	for _, c := range d.children {
		if err := c.awaitReady(ctx); err != nil {
			return err
		}
		d.progress("%s ready at %s", c.name, c.url)
	}
	return nil
}

// spawn starts processor or projector, and replaces an older process of the same name.
func (d *demo) spawn(name string) error {
	c := &child{name: name, workers: d.workers, addrFile: filepath.Join(d.dir, name+".addr"), exited: make(chan struct{})}
	if err := os.Remove(c.addrFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	args := []string{
		"run", "--instance", "demo", "--listen", d.listen(defaultListen[name]), "--listen-file", c.addrFile,
		"--log-format", "text", "--log-level", d.logLevel,
	}
	if d.kill {
		args = append(args, "--session-timeout", sessionTimeout.String())
	}
	if name == "projector" {
		args = append(args, "--data-dir", filepath.Join(d.dir, name))
	}
	c.cmd = d.command(name, args...)
	c.output = &tail{}
	if d.show {
		c.output.next, c.output.prefix = d.env.Stderr, name+": "
	}
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w; is --bin the directory of the programs (make build: build/bin)?", name, err)
	}
	go c.wait()
	d.children = slices.DeleteFunc(d.children, func(old *child) bool { return old.name == name })
	d.children = append(d.children, c)
	return nil
}

// command returns a program with the flags that all programs share.
func (d *demo) command(name string, args ...string) *exec.Cmd {
	args = append(args, "-b", strings.Join(d.brokers, ","), "-r", d.registry, "-t", d.topology)
	cmd := exec.Command(filepath.Join(d.bin, name), args...)
	cmd.Env = childEnv(os.Environ())
	cmd.SysProcAttr = ownGroup()
	return cmd
}

// foreign are the prefixes of MILLRACE_ variables that child processes do not get: the
// addresses that the demo sets itself, and the credentials and client settings for another
// cluster. Flags override all other variables that the demo sets.
var foreign = []string{
	"BROKERS", "BOOTSTRAP_", "METADATA_BROKER_", "COMMAND_CONFIG", "CLIENT_", "SOCKET_", "SECURITY_", "SASL_", "SSL_", "ENABLE_SSL_", "HTTPS_",
	"REGISTRY", "LISTEN", "ADVERTISE",
}

// childEnv returns the environment of a child process.
func childEnv(environ []string) []string {
	return slices.DeleteFunc(environ, func(v string) bool {
		name, ok := strings.CutPrefix(v, "MILLRACE_")
		return ok && slices.ContainsFunc(foreign, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	})
}

// child returns the running process of a program.
func (d *demo) child(name string) *child {
	i := slices.IndexFunc(d.children, func(c *child) bool { return c.name == name })
	return d.children[i]
}
