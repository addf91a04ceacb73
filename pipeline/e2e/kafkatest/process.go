package kafkatest

import (
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// stopTimeout is the time between SIGTERM and SIGKILL.
const stopTimeout = 30 * time.Second

// process is a Java process, whose output goes to NAME.log in a directory. It is not safe
// for concurrent use.
type process struct {
	name string
	dir  string

	cmd    *exec.Cmd     // nil while no process runs
	exited chan struct{} // closed when cmd has ended and waitErr is set
	// waitErr is the result of cmd.Wait. Read it only after exited is closed.
	waitErr error
}

// start starts java with arguments.
func (p *process) start(args ...string) error {
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own copy
	cmd := exec.Command("java", args...)
	cmd.Dir = p.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	go func() { // ends with the process, for which kill and terminate wait
		p.waitErr = cmd.Wait()
		close(exited)
	}()
	return nil
}

// alive returns an error if the process is not running.
func (p *process) alive() error {
	if p.cmd == nil {
		return fmt.Errorf("the %s is not running", p.name)
	}
	select {
	case <-p.exited:
		return fmt.Errorf("the %s died (%w); its log ends:\n%s", p.name, p.waitErr, p.logTail())
	default:
		return nil
	}
}

// kill ends the process with SIGKILL and waits until it has ended.
func (p *process) kill() error {
	if err := p.alive(); err != nil {
		return err
	}
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	<-p.exited
	p.cmd = nil
	return nil
}

// terminate ends a running process with SIGTERM, or after stopTimeout with SIGKILL. An
// error means that the process had died before.
func (p *process) terminate() error {
	if p.cmd == nil {
		return nil
	}
	err := p.alive()
	if err == nil {
		err = p.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.NewTimer(stopTimeout)
		defer timer.Stop()
		select {
		case <-p.exited:
		case <-timer.C:
			err = errors.Join(err, p.cmd.Process.Kill())
			<-p.exited
		}
	}
	p.cmd = nil
	return err
}

func (p *process) log() string { return filepath.Join(p.dir, p.name+".log") }

// logTail returns the last 4 KiB of the process's log, or "" if it cannot be read.
func (p *process) logTail() string {
	f, err := os.Open(p.log())
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // only read from
	const most = 4096
	if _, err := f.Seek(-most, io.SeekEnd); err != nil {
		_, err = f.Seek(0, io.SeekStart) // the log is shorter than that
		if err != nil {
			return ""
		}
	}
	tail, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	return "\n" + string(tail)
}

// freeAddr returns a free loopback address. Its port is below the range that the system
// uses for outgoing connections. While a broker is down, clients keep dialing its port. If
// the port were in that range, the system could assign it to such a connection, which
// would then connect to itself and block the port for the broker.
func freeAddr() (string, error) {
	var last error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+mrand.IntN(12000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		return addr, l.Close()
	}
	return "", fmt.Errorf("no free port: %w", last)
}
