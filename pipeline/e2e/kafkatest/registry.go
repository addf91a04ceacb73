package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Registry is an Apicurio schema registry, started by [StartRegistry]. It is not safe for
// concurrent use.
type Registry struct {
	java process
	url  string
}

// StartRegistry starts an Apicurio schema registry without schemas, which keeps everything
// in memory, and waits until it answers. The first call also fetches it from Maven
// Central. ctx bounds the start, not the life of the registry. The caller must call Stop.
func StartRegistry(ctx context.Context) (*Registry, error) {
	jars, err := fetched{name: "apicurio", pom: apicurioPOM, goal: "unpack-dependencies"}.fetch(ctx, "")
	if err != nil {
		return nil, err
	}
	runner, err := filepath.Glob(filepath.Join(jars, "*-runner.jar"))
	if err != nil || len(runner) != 1 {
		return nil, fmt.Errorf("%s has no runner: %v", jars, runner)
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	r := &Registry{java: process{name: "registry"}, url: "http://" + addr + "/apis/ccompat/v7"}
	if r.java.dir, err = os.MkdirTemp("", "millrace-registry-"); err != nil {
		return nil, err
	}
	if err := r.java.start("-Xmx384m", "-Dquarkus.http.host="+host, "-Dquarkus.http.port="+port, "-jar", runner[0]); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	if err := r.ready(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

// URL returns the base address of the API that is compatible with Confluent's registry.
func (r *Registry) URL() string { return r.url }

// Stop ends the registry and removes its data.
func (r *Registry) Stop() error { return errors.Join(r.java.terminate(), os.RemoveAll(r.java.dir)) }

// ready waits until the registry answers.
func (r *Registry) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/subjects", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close() // only the status counts
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-r.java.exited:
			return r.java.alive()
		case <-ctx.Done():
			return fmt.Errorf("the registry does not answer: %w (%w)%s", err, ctx.Err(), r.java.logTail())
		case <-tick.C:
		}
	}
}
