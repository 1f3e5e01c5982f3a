package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

// logind, as systemd's org.freedesktop.login1(5) has it. elogind speaks the same.
const (
	logindName      = "org.freedesktop.login1"
	logindPath      = dbus.ObjectPath("/org/freedesktop/login1")
	logindInterface = "org.freedesktop.login1.Manager"
	// busAgain after the system bus was not there, or has ended: containers have none, and where it is restarted it is soon there.
	busAgain = time.Minute
)

// announceSleep calls before when the machine is about to sleep, which waits until that returns (at most as long as logind allows, 5 s
// by default), and after when it is awake or has not slept after all, until ctx ends. Without logind it does nothing.
func announceSleep(ctx context.Context, log *slog.Logger, before, after func()) error {
	said := false
	for ctx.Err() == nil {
		began := time.Now()
		err := followLogind(ctx, before, after)
		if ctx.Err() != nil {
			break
		}
		if !said || time.Since(began) > busAgain {
			log.Info("sleep is not announced here: the clocks will tell", "err", err)
			said = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(busAgain):
		}
	}
	return nil
}

func followLogind(ctx context.Context, before, after func()) error {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to the system bus: %w", err)
	}
	defer bus.Close()
	signals := make(chan *dbus.Signal, 16)
	bus.Signal(signals)
	err = bus.AddMatchSignalContext(ctx, dbus.WithMatchSender(logindName), dbus.WithMatchObjectPath(logindPath),
		dbus.WithMatchInterface(logindInterface), dbus.WithMatchMember("PrepareForSleep"))
	if err != nil {
		return fmt.Errorf("listen to logind: %w", err)
	}
	lock, err := inhibit(ctx, bus)
	if err != nil {
		return err
	}
	defer func() { lock.Close() }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, ok := <-signals:
			var sleeps bool
			switch {
			case !ok:
				after() // nobody would say so any more
				return errors.New("the system bus has ended")
			case s.Name != logindInterface+".PrepareForSleep" || dbus.Store(s.Body, &sleeps) != nil:
			case sleeps:
				before()
				lock.Close()
			default:
				after()
				lock.Close()
				if lock, err = inhibit(ctx, bus); err != nil {
					return err
				}
			}
		}
	}
}

// inhibit has logind wait with a sleep until the file is closed.
func inhibit(ctx context.Context, bus *dbus.Conn) (*os.File, error) {
	var fd dbus.UnixFD
	call := bus.Object(logindName, logindPath).CallWithContext(ctx, logindInterface+".Inhibit", 0,
		"sleep", "meshnode", "hand tasks back to other computers", "delay")
	if err := call.Store(&fd); err != nil {
		return nil, fmt.Errorf("ask logind to wait before a sleep: %w", err)
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}
