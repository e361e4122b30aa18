"""The probe in Perl: what the kernel labels programs with when it executes them. See probe.py for what it says.

It needs nothing but perl(1) itself (Debian's perl-base): no module. Numbers of system calls: asm/unistd_64.h of x86,
asm-generic/unistd.h of the others; of requests: linux/ptrace.h, asm-generic/resource.h, linux/wait.h.
"""

PERL = r"""
use strict;
use warnings;
$| = 1;
my ($machine, $list, $method, $patience, @queries) = @ARGV;
my %table = $machine eq 'x86_64'
    ? (ptrace => 101, execve => 59, sigmask => 14, setrlimit => 160, waitid => 247, wait4 => 61)
    : (ptrace => 117, execve => 221, sigmask => 135, setrlimit => 164, waitid => 95, wait4 => 260);
my ($SEIZE, $OPTIONS, $EXEC_STOP) = (0x4206, 0x00100000 | 0x10, (4 << 16) | (5 << 8) | 0x7f);

sub say_ {
    my $data = join '', map { "$_\0" } scalar(@_), @_;
    while (length $data) {
        my $done = syswrite STDOUT, $data;
        exit 71 unless defined $done;
        substr($data, 0, $done) = '';
    }
}
sub content {
    my ($path) = @_;
    my $data = '';
    open my $in, '<', $path or return (undef, $! + 0);
    my $got = sysread $in, $data, 8192;
    return (undef, $! + 0) unless defined $got;
    return ($data, 0);
}
sub label_of {
    my ($process) = @_;
    for my $how ('apparmor', 'current') {
        my $path = $how eq 'apparmor' ? "/proc/$process/attr/apparmor/current" : "/proc/$process/attr/current";
        my ($label, $error) = content($path);
        next if !defined $label && $error == 2 && $how eq 'apparmor';
        return ($how, defined $label ? $label : '', $error);
    }
}
sub place { my @s = stat $_[0]; return @s ? "$s[0]:$s[1]" : '' }

exit 74 unless $machine =~ /^(x86_64|aarch64|riscv64|loongarch64)$/;
say_('own', label_of('self'));
say_('first', label_of(1));

open my $in, '<', $list or exit 75;
my @words = do { local $/; split /\0/, <$in>, -1 };
close $in;
pop @words;

# In the child: waits until it may go on, and becomes the program.
sub become {
    my ($ready, $failed, $path, $context, $how) = @_;
    my $zero = "\0" x 8;
    sysread $ready, my $byte, 1 or kill 9, $$;
    my ($stage, $errno) = ('', 0);
    if (length $context) {
        # proc_pid_attr(5): a profile for the next execve(2), as systemd sets it.
        my $kind = substr $context, 0, 1, '';
        my $set = 0;
        for my $file ('/proc/self/attr/apparmor/exec', '/proc/self/attr/exec') {
            open my $out, '+<', $file or next;
            my $done = syswrite $out, "exec $context";
            $errno = $! + 0;
            $set = defined $done;
            last;
        }
        ($stage) = ('profile') if !$set && $kind ne '-';
    }
    if ($stage eq '') {
        syscall $table{sigmask}, 2, $zero, 0, 8;
        my ($small, $one) = (pack('QQ', 65536, 65536), pack('QQ', 1, 1));
        my $argv = pack 'pJ', $path, 0;
        my $envp = pack 'J', 0;
        if ($how eq 'exit') {
            # RLIMIT_CORE of 1 keeps the program that core_pattern names from being started.
            syscall($table{setrlimit}, 4, $one) == 0 && syscall($table{setrlimit}, 9, $small) == 0 or kill 9, $$;
        }
        syscall $table{execve}, $path, $argv, $envp;
        ($stage, $errno) = ('exec', $! + 0);
    }
    syswrite $failed, "$stage $errno\n";
    kill 9, $$;
}

# How, label, number of the error, place and path of what runs; or a stage and an errno.
sub ask {
    my ($path, $context, $how) = @_;
    pipe my $ready, my $go or return ('failed', 'pipe', $! + 0);
    pipe my $said, my $failed or return ('failed', 'pipe', $! + 0);
    my $child = fork;
    return ('failed', 'fork', $! + 0) unless defined $child;
    if (!$child) {
        close $go; close $said;
        open STDIN, '<', '/dev/null'; open STDOUT, '>', '/dev/null'; open STDERR, '>', '/dev/null';
        $SIG{$_} = 'DEFAULT' for qw(ALRM PIPE);
        become($ready, $failed, $path, $context, $how);
        kill 9, $$;
    }
    close $ready; close $failed;
    my @answer;
    my $late = 0;
    # The program itself is never let go on: whatever happens to this process, the kernel ends it (EXITKILL).
    if ($how eq 'ptrace' && syscall($table{ptrace}, $SEIZE, $child, 0, $OPTIONS) != 0) {
        @answer = ('failed', 'ptrace', $! + 0);
    } else {
        eval {
            local $SIG{ALRM} = sub { die "late\n" };
            alarm $patience;
            syswrite $go, '.';
            if ($how eq 'ptrace') {
                # Perl's own waitpid keeps 16 bits of the status.
                my $word = "\0" x 8;
                my $done = syscall $table{wait4}, $child, $word, 0, 0;
                my $status = unpack 'I', $word;
                if ($done != $child) {
                    @answer = ('failed', 'wait', $! + 0);
                } elsif ($status == $EXEC_STOP) {
                    my $exe = "/proc/$child/exe";
                    @answer = ('label', label_of($child), place($exe), readlink($exe) // '');
                } elsif (($status & 0xff) == 0x7f) {
                    @answer = ('failed', 'stop', $status);
                } else {
                    $child = 0;
                    @answer = ('failed', 'gone', $status);
                }
            } else {
                my $info = "\0" x 128;
                my $done = syscall $table{waitid}, 1, $child, $info, 4 | 0x01000000, 0;
                my ($code, $status) = ((unpack 'i3', $info)[2], (unpack 'x24i', $info)[0]);
                # Ended by SIGSEGV (11), which is what execve(2) does to who is beyond its point of no return.
                if ($done == 0 && ($code == 2 || $code == 3) && $status == 11) {
                    @answer = ('label', label_of($child), '', '');
                } else {
                    @answer = ('failed', $code == 1 ? 'ran' : 'gone', $status);
                }
            }
            alarm 0;
        };
        alarm 0;
        @answer = ('failed', 'late', 0) if $@;
    }
    if ($child) { kill 9, $child; waitpid $child, 0 }
    if ($answer[0] eq 'failed' && $answer[1] =~ /^(gone|late)$/) {
        my $text = '';
        sysread $said, $text, 64;
        @answer = ('failed', $1, $2) if $text =~ /^([a-z]+) ([0-9]+)$/;
    }
    return @answer;
}

my %labels;
my @own = ask('/proc/self/exe', '', $method);
say_('trial', $method, @own);
if ($own[0] eq 'label') {
    for (my $at = 0; $at + 1 < @words; $at += 2) {
        my ($path, $context) = @words[$at, $at + 1];
        my $before = place($path);
        my @answer = ask($path, $context, $method);
        say_('answer', $at / 2, $before, place($path), @answer);
        $labels{$1} = 1 if $answer[0] eq 'label' && $answer[2] =~ /^(.+) \([a-z]+\)\s*\z/s;
    }
}
for my $label (sort keys %labels) {
    for my $query (@queries) {
        my ($name, $match) = split /=/, $query;
        my ($said, $errno) = ('', 0);
        # One question a file that is opened (security/apparmor/apparmorfs.c, query_label).
        if (open my $access, '+<', '/sys/kernel/security/apparmor/.access') {
            if (defined syswrite $access, "label\0$label\0" . pack 'H*', $match) {
                $errno = $! + 0 unless defined sysread $access, $said, 4096;
            } else {
                $errno = $! + 0;
            }
        } else {
            $errno = $! + 0;
        }
        say_('query', $label, $name, $said, $errno);
    }
}
say_('finished');
"""
