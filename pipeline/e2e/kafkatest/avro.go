package kafkatest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"
)

// avroPOM lists the jars of Apache Avro for Java.
//
//go:embed avro.xml
var avroPOM []byte

// resolveProgram reads values with other schemas. It runs from its source, which needs a JDK.
//
//go:embed Resolve.java
var resolveProgram []byte

// A Resolution is a value of a writer's schema, to be read with a reader's schema. Schemas
// are JSON.
type Resolution struct {
	Writer, Reader string
	Value          []byte
}

// A Resolved is what Apache Avro for Java makes of a Resolution: the value with the reader's
// schema, or the reason why there is none.
type Resolved struct {
	Value []byte
	Fault string
}

// ResolveWithAvroForJava resolves values with Apache Avro for Java. The first call fetches it
// from Maven Central.
func ResolveWithAvroForJava(ctx context.Context, all []Resolution) ([]Resolved, error) {
	jars, err := fetched{name: "avro", pom: avroPOM, goal: "copy-dependencies"}.fetch(ctx, "")
	if err != nil {
		return nil, err
	}
	var in bytes.Buffer
	for _, r := range all {
		fmt.Fprintf(&in, "%s\n%s\n%x\n", r.Writer, r.Reader, r.Value)
	}
	out, err := runJava(ctx, "Resolve.java", resolveProgram, []string{jars}, &in)
	if err != nil {
		return nil, fmt.Errorf("resolving with Apache Avro for Java: %w", err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(all) {
		return nil, fmt.Errorf("Apache Avro for Java answered %d of %d values", len(lines), len(all))
	}
	resolved := make([]Resolved, len(all))
	for i, line := range lines {
		if fault, ok := strings.CutPrefix(line, "error "); ok {
			resolved[i].Fault = fault
			continue
		}
		if resolved[i].Value, err = hex.DecodeString(strings.TrimPrefix(line, "ok ")); err != nil {
			return nil, fmt.Errorf("Apache Avro for Java answered %q: %w", line, err)
		}
	}
	return resolved, nil
}
